"""Near duplicates by embeddings among very many rows: how long they take to find, and how many of planted ones are.

Nine of ten embeddings are images of their own, and every ninth of these has a copy at a cosine of .96 to .99. They are
of one of two kinds:

    isotropic  in a random direction: two images have a cosine of about 0.
    clusters   as those of CLIP, in one of 1,000 clusters, with a mean that all share: two images have a cosine of .5,
               and of .8 in one cluster; what is an image's own has a spectrum that falls.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jobs.benchmark.processes import in_repository, resident_mib
from volgrowth.analysis.embeddings import CHUNK, Embeddings
from volgrowth.errors import EngineError

KINDS_OF_EMBEDDINGS = ("isotropic", "clusters")
CLUSTERS, COPIED = 1000, 10
LEAST, MOST, SIMILARITY = 0.96, 0.99, 0.95
BATCH = 8192

Array = np.ndarray
Drawn = Callable[[int], Array]


def plant_embeddings(path: Path, rows: int, width: int, kind: str, seed: int = 0) -> int:
    """Write planted embeddings, those of the copies last; return how many copies there are: of the first images."""
    random = np.random.default_rng(seed)
    image, own = _images(width, kind, random)
    copies = rows // COPIED
    first = np.empty((copies, width), np.float32)
    with path.open("wb") as file:
        for start in range(0, rows - copies, BATCH):
            vectors = image(min(BATCH, rows - copies - start))
            first[start : start + BATCH] = vectors[: max(copies - start, 0)]
            file.write(vectors.tobytes())
        for start in range(0, copies, BATCH):
            some = first[start : start + BATCH]
            away = own(len(some))
            away = _of_length_one(away - np.einsum("ij,ij->i", away, some)[:, None] * some)
            cosine = random.uniform(LEAST, MOST, (len(some), 1)).astype(np.float32)
            file.write(_of_length_one(cosine * some + np.sqrt(1 - cosine**2) * away).tobytes())
    return copies


def measure_embeddings(rows: int, width: int, kind: str) -> dict[str, Any]:
    """Plant embeddings and join them in this process, which should do nothing else.

    Returns:
        A row of the page. "copies found" is the share of copies that are in one group with their image, "joined
        otherwise" counts images and copies that joined another one.
    """
    with tempfile.TemporaryDirectory(prefix="volgrowth-") as name:
        folder = Path(name)
        copies = plant_embeddings(folder / "vectors", rows, width, kind)
        embeddings = Embeddings("planted", SIMILARITY, folder, rows, rows, width)
        np.arange(rows).tofile(folder / "place")
        order, leader = np.random.default_rng(1).permutation(rows), np.arange(rows)
        before = _forget_peak()
        began, cpu = time.monotonic(), time.process_time()
        for late, found in embeddings.join(order[start : start + CHUNK] for start in range(0, rows, CHUNK)):
            leader[late] = found
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        above = resident_mib(os.getpid(), peak=True) - before
        files = sum(one.stat().st_size for one in folder.iterdir())
    together = int((leader[rows - copies :] == leader[:copies]).sum())
    return {
        "embeddings": rows,
        "numbers": width,
        "kind": kind,
        "seconds": seconds,
        "CPU, s": cpu,
        "above start, MiB": above,
        "temporary files, MiB": files / 2**20,
        "copies found, %": 100 * together / max(copies, 1),
        "joined otherwise": embeddings.joined - together,
    }


def measure_embeddings_apart(rows: int, width: int, kind: str) -> dict[str, Any]:
    """Run `measure_embeddings` in a process of its own, so that its memory is only that of the search.

    Raises:
        EngineError: the process failed.
    """
    command = [sys.executable, "-m", "jobs.benchmark.near_embeddings", str(rows), str(width), kind]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=in_repository())
    if done.returncode:
        raise EngineError(f"{' '.join(command)} ended with {done.returncode}: its own message says why")
    return json.loads(done.stdout)


def _images(width: int, kind: str, random: np.random.Generator) -> tuple[Drawn, Drawn]:
    """Return what draws embeddings of so many images, and what draws the part of them that is an image's own."""
    spectrum = np.ones(width) if kind == "isotropic" else 1 / np.sqrt(1 + np.arange(width) / 16)
    mean = _of_length_one(random.normal(size=(1, width)))
    centres = _of_length_one(random.normal(size=(CLUSTERS, width)) * spectrum)

    def own(count: int) -> Array:
        return _of_length_one(random.standard_normal((count, width), np.float32) * spectrum)

    def clustered(count: int) -> Array:
        parts = mean, centres[random.integers(CLUSTERS, size=count)], own(count)
        return _of_length_one(sum(np.sqrt(share) * part for share, part in zip((0.5, 0.3, 0.2), parts, strict=True)))

    return (own if kind == "isotropic" else clustered), own


def _of_length_one(vectors: Any) -> Array:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _forget_peak() -> float:
    """Make the peak of this process's memory what it is now, MiB, where Linux can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return resident_mib(os.getpid())


if __name__ == "__main__":
    print(json.dumps(measure_embeddings(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
