"""Which altered copies the hash groups with their image, and which different images it takes for copies.

Some images of a set get copies of every kind of `alterations`; the others stand beside them. All are grouped as an
audit groups its rows. No model is needed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from jobs.benchmark.detection.subjects import describe_images
from jobs.benchmark.detection.suite import Setup
from jobs.benchmark.truth.alterations import ALTERATIONS, alter
from jobs.experiments import Outcome, say
from volgrowth.analysis.duplicates import RADIUS, duplicate_clusters, has_look
from volgrowth.audit.sampling.neighbours import Neighbours
from volgrowth.demo.cases import digit_images
from volgrowth.demo.training import Recipe

# side of the images, images that get copies, copies of each kind, and images at most
SIDE, ALTERED, COPIES, MOST = 32, 300, 2, 3000


def _set(file: str) -> Callable[[Path], np.ndarray]:
    return Setup("", file, 0, (), Recipe()).images


SETS: dict[str, tuple[str | None, Callable[[Path], np.ndarray]]] = {
    "digits": (None, lambda folder: digit_images()),
    "emoji": ("emoji32.npz", _set("emoji32.npz")),
    "photographs": ("photos32.npz", _set("photos32.npz")),
}
"""File and images of each set; None for the images that scikit-learn brings."""


@dataclass(frozen=True)
class Grouped:
    """A set of images with altered copies, in the groups that an audit would make.

    Attributes:
        pixels: images (n, C, H, W) uint8: those that get copies, then the others, then the copies.
        origin: number of the image that each one is a copy of, or its own, (n,).
        kind: how each copy was altered, (n,); '' for images.
        cluster: group of each one, (n,).
        phash: perceptual hash of each one, (n,) uint64.
    """

    pixels: np.ndarray
    origin: np.ndarray
    kind: np.ndarray
    cluster: np.ndarray
    phash: np.ndarray

    def found(self, kind: str) -> np.ndarray:
        """Return which copies of this kind share a group with their image, (copies,) bool."""
        mine = self.kind == kind
        return self.cluster[mine] == self.cluster[self.origin[mine]]

    def bits_apart(self, kind: str) -> np.ndarray:
        """Return in how many bits the hash of each copy of this kind differs from that of its image, (copies,)."""
        mine = self.kind == kind
        return np.bitwise_count(self.phash[mine] ^ self.phash[self.origin[mine]])

    def nearest(self, kind: str) -> np.ndarray:
        """Return for which copies of this kind their own image is the nearest of all in pixels, (copies,) bool."""
        mine, images = self.kind == kind, self.kind == ""
        found = Neighbours(self.pixels[mine], 1)
        found.add(self.pixels[images], self.origin[images])
        return found.group[:, 0] == self.origin[mine]

    @property
    def mistaken(self) -> np.ndarray:
        """Images that share a group with a different image, (images,) bool."""
        of_images = self.cluster[self.kind == ""]
        _, where, times = np.unique(of_images, return_inverse=True, return_counts=True)
        return np.asarray(times[where] > 1)


def group_copies(images: np.ndarray, altered: int = ALTERED, seed: int = 0) -> Grouped:
    """Alter copies of some images (n, C, H, W) and group all of them; images that are flat get no copies."""
    random = np.random.default_rng(seed)
    images = images[random.permutation(len(images))[:MOST]]
    look = has_look(describe_images(images))
    images = np.concatenate([images[look], images[~look]])
    altered = min(altered, int(look.sum()))
    made = [(row, kind) for kind in ALTERATIONS for row in range(altered) for _ in range(COPIES)]
    pixels = np.concatenate([images, [alter(images[row], kind, random) for row, kind in made]])
    described = describe_images(pixels)
    cluster, _ = duplicate_clusters(described.append_column("row", pa.array(np.arange(len(pixels)))))
    origin = np.concatenate([np.arange(len(images)), [row for row, _ in made]])
    kind = np.array([*[""] * len(images), *(kind for _, kind in made)])
    return Grouped(pixels, origin, kind, cluster, described["phash"].to_numpy())


def enlarge(images: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Return images (n, C, H, W) at another size, bicubic; those of that size as they are."""
    if images.shape[-1] == side:
        return images
    grey = [Image.fromarray(image[0]).resize((side, side), Image.Resampling.BICUBIC) for image in images]
    return np.stack([np.asarray(image) for image in grey])[:, None]


def measure_groups(folder: Path, names: Sequence[str] = tuple(SETS)) -> Outcome:
    """Return the tables of the page: what is found of each kind in each set, and what is mistaken.

    Args:
        folder: the image sets; those that are not there are left out, which is said.
        names: sets to measure.
    """
    found, mistaken, left_out = list[dict[str, Any]](), list[dict[str, Any]](), list[str]()
    for name in names:
        file, read = SETS[name]
        if file and not (folder / file).exists():
            left_out.append(name)
            continue
        say(f"grouping {name}")
        grouped = group_copies(enlarge(read(folder)))
        found += [_row(name, kind, grouped) for kind in ALTERATIONS]
        images = int((grouped.kind == "").sum())
        share = _percent(grouped.mistaken)
        mistaken.append({"set": name, "images": images, "share a group with a different image, %": share})
    said = [f"Left out, since its images are not there: {name}." for name in left_out]
    return Outcome(
        [*_sentences(found), *said],
        {"groups": found, "others": mistaken},
        {"side": SIDE, "images with copies": ALTERED, "copies of each kind": COPIES, "bits in a group": RADIUS},
    )


def _row(name: str, kind: str, grouped: Grouped) -> dict[str, Any]:
    bits = grouped.bits_apart(kind)
    return {
        "set": name,
        "copies": kind,
        "in the group of their image, %": _percent(grouped.found(kind)),
        "bits apart, median": int(np.median(bits)),
        "bits apart, of nine in ten at most": int(np.quantile(bits, 0.9)),
        "their image is the nearest in pixels, %": _percent(grouped.nearest(kind)),
    }


def _percent(mask: np.ndarray) -> str:
    return f"{100 * mask.mean():.1f}"


def _sentences(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Say the range over the sets of what is found of each kind."""
    sentences = []
    for kind in dict.fromkeys(row["copies"] for row in rows):
        shares = [float(row["in the group of their image, %"]) for row in rows if row["copies"] == kind]
        sentences.append(f"Of {kind} copies the groups find {min(shares):.0f} to {max(shares):.0f}%, by set.")
    return sentences
