"""Near duplicates among very many rows: how long they take to find, in how much memory, and whether all are found.

Hashes are planted, so that the truth is known:

    single   a quarter of the rows: images of their own
    copied   a quarter, in families of ten: an image in six identical rows, and four copies that differ from it in up to
             `RADIUS` of its `UNSTABLE` bits (those near the median, in a real hash) and a little in light. All
             should be one group.
    changed  a twelfth, in families of ten that all differ so from an image which is not there. Two of them may be twice
             the radius apart, and a group reaches no further than its radius: some must be missed.
    skewed   five twelfths: different images of one hash and any light, and as many that share half of its bits. What
             is alike here is so by chance; they are there to slow the search down.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from volgrowth.analysis.duplicates import RADIUS, duplicate_clusters
from volgrowth.errors import EngineError

FAMILY = 10
IDENTICAL = 6
UNSTABLE = 4
KINDS = ("single", "copied", "changed", "skewed")
OF_TWELVE = (3, 3, 1, 5)


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        table_mib: memory of the process with its table of hashes, before the search.
        peak_mib: most memory of the process.
        groups: of more than one row.
        copied_recall: share of the pairs of one family, both copied, that are in one group.
        changed_recall: the same of changed ones.
        false_pairs: pairs of rows of other kinds than skewed that are in one group and not of one family.
    """

    rows: int
    seconds: float
    table_mib: float
    peak_mib: float
    groups: int
    copied_recall: float
    changed_recall: float
    false_pairs: int


@dataclass(frozen=True)
class Planted:
    """A table with the columns of `records.SCORES` that duplicates need, and the kind and the family of each row."""

    scores: pa.Table
    kind: np.ndarray
    family: np.ndarray


def plant(rows: int, seed: int = 0) -> Planted:
    """Rows in a random order."""
    random = np.random.default_rng(seed)
    kind = np.sort(np.arange(rows) % 12)
    kind = np.searchsorted(np.cumsum(OF_TWELVE), kind, side="right")
    planted = (kind == 1) | (kind == 2)
    family = np.where(planted, np.arange(rows) // FAMILY, rows + np.arange(rows))
    family += rows * 2 * kind  # a family of two kinds is two
    _, one, family = np.unique(family, return_index=True, return_inverse=True)
    phash, mean, deviation = (draw[family] for draw in _drawn(len(one), random))
    identical = (kind == 1) & (np.arange(rows) % FAMILY < IDENTICAL)
    vary = planted & ~identical
    unstable = random.integers(64, size=(len(one), UNSTABLE), dtype=np.uint64)[family[vary]]
    for _ in range(RADIUS):
        phash[vary] ^= np.uint64(1) << unstable[np.arange(len(unstable)), random.integers(UNSTABLE, size=len(unstable))]
    mean[vary] += random.uniform(-0.02, 0.02, int(vary.sum()))
    skewed = np.flatnonzero(kind == 3)
    phash[skewed] &= np.where(np.arange(len(skewed)) % 2, 0xFFFF_FFFF, 0).astype(np.uint64)
    content = np.where(identical, family, rows + np.arange(rows)).astype(np.uint64)
    content *= np.uint64(0x9E3779B97F4A7C15)  # an odd number: no two become one
    order = random.permutation(rows)
    columns = {
        "row": np.arange(rows),
        "phash": phash[order],
        "content_hash": content[order],
        "mean": mean[order].astype(np.float32),
        "variance": (deviation[order] ** 2).astype(np.float32),
    }
    return Planted(pa.table(columns), kind[order], family[order])


def measure(rows: int) -> Measured:
    """Plant and search in this process, which should do nothing else."""
    planted = plant(rows)
    before, began = _memory("VmRSS"), time.monotonic()
    cluster, copies = duplicate_clusters(planted.scores)
    seconds, peak = time.monotonic() - began, _memory("VmHWM")
    known = planted.kind != KINDS.index("skewed")
    return Measured(
        rows=rows,
        seconds=seconds,
        table_mib=before,
        peak_mib=peak,
        groups=len(np.unique(cluster[copies > 1])),
        copied_recall=recall(planted, cluster, "copied"),
        changed_recall=recall(planted, cluster, "changed"),
        false_pairs=_pairs(cluster[known]) - _pairs(cluster[known], planted.family[known]),
    )


def recall(planted: Planted, cluster: np.ndarray, kind: str) -> float:
    """Share of the pairs of one family of this kind that are in one group."""
    mine = planted.kind == KINDS.index(kind)
    return _pairs(cluster[mine], planted.family[mine]) / max(_pairs(planted.family[mine]), 1)


def run(rows: int) -> Measured:
    """Measure in a process of its own.

    Raises:
        EngineError: it failed.
    """
    command = [sys.executable, "-m", "jobs.benchmark.near_duplicates", str(rows)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise EngineError(f"{' '.join(command)} ended with {done.returncode}: its own message says why")
    return Measured(**json.loads(done.stdout))


def markdown(measured: Measured, device: str) -> str:
    """The numbers as a page."""
    rows = [
        ("Rows", f"{measured.rows:,}"),
        ("Took", f"{measured.seconds:,.1f} s on one core"),
        ("Memory", f"at most {measured.peak_mib:,.0f} MiB, {measured.table_mib:,.0f} MiB of it before the search"),
        ("Groups of more than one row", f"{measured.groups:,}"),
        ("Pairs found of an image and its copies", f"{measured.copied_recall:.2%}"),
        ("Pairs found of copies without the image", f"{measured.changed_recall:.2%}"),
        ("Pairs that are none", f"{measured.false_pairs:,}"),
    ]
    return "\n".join([f"Measured on {device}.", "", "| | |", "|-|-|", *(f"| {a} | {b} |" for a, b in rows), ""])


def write(folder: Path, measured: Measured, device: str) -> None:
    """`duplicates.json` and `duplicates.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "duplicates.json").write_text(json.dumps(asdict(measured), indent=2) + "\n")
    (folder / "duplicates.md").write_text(markdown(measured, device))


def _drawn(count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hash, mean and deviation of so many images."""
    return (
        random.integers(2**64, size=count, dtype=np.uint64),
        random.uniform(-0.8, 0.8, count),
        random.uniform(0.2, 0.8, count),
    )


def _pairs(*labels: np.ndarray) -> int:
    """Pairs of rows that agree in all labels."""
    order = np.lexsort(labels)
    differs = np.any([label[order][1:] != label[order][:-1] for label in labels], axis=0)
    ends = np.flatnonzero(np.concatenate([[True], differs, [True]]))
    sizes = np.diff(ends)
    return int((sizes * (sizes - 1) // 2).sum())


def _memory(name: str) -> float:
    """MiB: VmRSS now, VmHWM at most. Not `getrusage`, which counts what the process before `exec` had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    print(json.dumps(asdict(measure(int(sys.argv[1])))))
