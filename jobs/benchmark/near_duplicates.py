"""Near duplicates among very many rows: how long they take to find, in how much memory, and whether all are found.

Hashes are planted, so that the truth is known:

    single   a quarter of the rows: images of their own
    copied   a quarter, in families of ten: an image in six identical rows, and four copies that differ from it in up to
             `RADIUS` of its `UNSTABLE` bits (those near the median, in a real hash) and a little in light. All
             should be one group.
    changed  a twelfth, in families of ten that all differ so from an image which is not there. Two of them may be twice
             the radius apart, and a group reaches no further than its radius: some must be missed.
    skewed   five twelfths: different images of one hash and any light, and as many that share half of its bits. They
             are alike by chance, and are there to slow the search down.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.benchmark.processes import in_repository, resident_mib
from volgrowth.analysis.duplicates import RADIUS, duplicate_clusters
from volgrowth.errors import EngineError

FAMILY = 10
IDENTICAL = 6
UNSTABLE = 4
KINDS = ("single", "copied", "changed", "skewed")
OF_TWELVE = (3, 3, 1, 5)


@dataclass(frozen=True)
class PlantedHashes:
    """A table with the columns of `records.SCORES` that the search needs, and the kind and family of each row."""

    scores: pa.Table
    kind: np.ndarray
    family: np.ndarray


def plant_hashes(rows: int, seed: int = 0) -> PlantedHashes:
    """Return so many rows of planted hashes in a random order."""
    random = np.random.default_rng(seed)
    kind = np.sort(np.arange(rows) % 12)
    kind = np.searchsorted(np.cumsum(OF_TWELVE), kind, side="right")
    planted = (kind == 1) | (kind == 2)
    family = np.where(planted, np.arange(rows) // FAMILY, rows + np.arange(rows))
    family += rows * 2 * kind  # a family of two kinds is two
    _, one, family = np.unique(family, return_index=True, return_inverse=True)
    phash = random.integers(2**64, size=len(one), dtype=np.uint64)[family]
    mean = random.uniform(-0.8, 0.8, len(one))[family]
    deviation = random.uniform(0.2, 0.8, len(one))[family]
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
    return PlantedHashes(pa.table(columns), kind[order], family[order])


def measure_duplicates(rows: int) -> dict[str, Any]:
    """Plant hashes and search them in this process, which should do nothing else.

    Returns:
        A row of the page. "copies found" and "changed found" are shares of the pairs of one family that are in one
        group; "false pairs" counts pairs in one group that are not of one family, skewed rows apart.
    """
    planted = plant_hashes(rows)
    table, began = resident_mib(os.getpid()), time.monotonic()
    cluster, copies = duplicate_clusters(planted.scores)
    seconds = time.monotonic() - began
    known = planted.kind != KINDS.index("skewed")
    return {
        "rows": rows,
        "seconds": seconds,
        "memory before, MiB": table,
        "at most, MiB": resident_mib(os.getpid(), peak=True),
        "groups of several": len(np.unique(cluster[copies > 1])),
        "copies found, %": 100 * pair_recall(planted, cluster, "copied"),
        "changed found, %": 100 * pair_recall(planted, cluster, "changed"),
        "false pairs": _pairs(cluster[known]) - _pairs(cluster[known], planted.family[known]),
    }


def pair_recall(planted: PlantedHashes, cluster: np.ndarray, kind: str) -> float:
    """Return the share of the pairs of one family of this kind that are in one group."""
    mine = planted.kind == KINDS.index(kind)
    return _pairs(cluster[mine], planted.family[mine]) / max(_pairs(planted.family[mine]), 1)


def measure_apart(rows: int) -> dict[str, Any]:
    """Run `measure_duplicates` in a process of its own, so that its memory is only that of the search.

    Raises:
        EngineError: the process failed.
    """
    command = [sys.executable, "-m", "jobs.benchmark.near_duplicates", str(rows)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=in_repository())
    if done.returncode:
        raise EngineError(f"{' '.join(command)} ended with {done.returncode}: its own message says why")
    return json.loads(done.stdout)


def _pairs(*labels: np.ndarray) -> int:
    """Return the number of pairs of rows that agree in all labels."""
    order = np.lexsort(labels)
    differs = np.any([label[order][1:] != label[order][:-1] for label in labels], axis=0)
    sizes = np.diff(np.flatnonzero(np.concatenate([[True], differs, [True]])))
    return int((sizes * (sizes - 1) // 2).sum())


if __name__ == "__main__":
    print(json.dumps(measure_duplicates(int(sys.argv[1]))))
