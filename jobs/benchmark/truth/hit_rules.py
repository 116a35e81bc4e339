"""Which altered copies a hit rule finds, by the distance that it compares images with, and at what rate by mistake.

A set is split into images that are searched and held-out ones. Altered copies of some of the searched images, and the
held-out images, are compared with all searched ones by the rule of `volgrowth.audit.sampling.hits`, as if they were
samples of a model. A hit of a held-out image is a mistake, or a natural near duplicate. No model is needed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jobs.benchmark.truth.alterations import ALTERATIONS, alter
from jobs.benchmark.truth.grouping import SETS, SIDE, enlarge
from jobs.experiments import Outcome, say
from volgrowth.audit.sampling.hits import NEIGHBOURS, RATIO, look_of
from volgrowth.audit.sampling.neighbours import Neighbours
from volgrowth.errors import UsageError

# images that are searched, held out, and altered once by each kind
SEARCHED, HELD_OUT, ALTERED = 1200, 600, 100
# of those, what the similarity of a library is tried on, which compares two images at a time
FEW = 50

Nearest = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Trial:
    """A set of images to search, and what is compared with it.

    Attributes:
        images: (n, C, H, W) uint8.
        copies: altered copies, (m, C, H, W).
        origin: number of the image that each is a copy of, (m,).
        kind: how each was altered, (m,).
        held_out: images that are in no way copies, (h, C, H, W).
    """

    images: np.ndarray
    copies: np.ndarray
    origin: np.ndarray
    kind: np.ndarray
    held_out: np.ndarray

    @classmethod
    def of(cls, images: np.ndarray, seed: int = 0) -> "Trial":
        """Split images (n, C, H, W) and alter copies."""
        random = np.random.default_rng(seed)
        images = images[random.permutation(len(images))]
        held = min(HELD_OUT, len(images) // 3)
        searched, held_out = images[held : held + SEARCHED], images[:held]
        made = [(row, kind) for kind in ALTERATIONS for row in range(min(ALTERED, len(searched)))]
        copies = np.stack([alter(searched[row], kind, random) for row, kind in made])
        origin, kind = (np.array(column) for column in zip(*made, strict=True))
        return cls(searched, copies, origin, kind, held_out)

    def few(self, each: int) -> "Trial":
        """Return the trial with so many copies of each kind, and half of the held-out images."""
        mine = self.origin < each
        held = self.held_out[: len(self.held_out) // 2]
        return Trial(self.images, self.copies[mine], self.origin[mine], self.kind[mine], held)


def by_pixels(queries: np.ndarray, images: np.ndarray) -> Nearest:
    """Return distances to the nearest images and their numbers, (queries, 50) both, as `verify` finds them."""
    found = Neighbours(queries, min(NEIGHBOURS, len(images)))
    found.add(images, np.arange(len(images)))
    return np.sqrt(found.squared), found.group


def by_look(queries: np.ndarray, images: np.ndarray) -> Nearest:
    """Return distances and numbers as `verify --distance perceptual` finds them."""
    (looks, clear), (among, there) = look_of(queries), look_of(images)
    found = Neighbours(looks, min(NEIGHBOURS, int(there.sum())))
    found.add(among[there], np.flatnonzero(there))
    return np.where(clear[:, None], np.sqrt(found.squared), np.inf), np.where(clear[:, None], found.group, -1)


def by_similarity(queries: np.ndarray, images: np.ndarray) -> Nearest:
    """Return 1 - SSIM and numbers of the images that are nearest by pixels, the most similar first."""
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        raise UsageError("structural similarity needs scikit-image: pip install scikit-image") from None
    _, near = by_pixels(queries, images)
    similar = partial(structural_similarity, win_size=7, channel_axis=0, data_range=255)
    distance = np.array(
        [[1 - similar(query, images[number]) for number in row] for query, row in zip(queries, near, strict=True)]
    )
    order = distance.argsort(axis=1)
    return np.take_along_axis(distance, order, 1), np.take_along_axis(near, order, 1)


DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray], Nearest]] = {
    "pixels": by_pixels,
    "perceptual": by_look,
    "1 - SSIM": by_similarity,
}


def ratios(nearest: Nearest) -> np.ndarray:
    """Return the distance to the nearest image over the mean to the 50 nearest, (queries,); 1 where none is near."""
    distance = np.where(np.isfinite(nearest[0]), nearest[0], 1.0)
    return distance[:, 0] / np.maximum(distance.mean(1), 1e-12)


def measure_hit_rules(folder: Path, names: Sequence[str] = tuple(SETS)) -> Outcome:
    """Return the table of the page: what is found of each kind in each set by each distance.

    Args:
        folder: the image sets; those that are not there are left out, which is said.
        names: sets to measure.
    """
    rows, said = list[dict[str, Any]](), list[str]()
    for name in names:
        file, read = SETS[name]
        if file and not (folder / file).exists():
            said.append(f"Left out, since its images are not there: {name}.")
            continue
        trial = Trial.of(enlarge(read(folder)))
        allowed = None
        for label, compare in DISTANCES.items():
            say(f"{name} by {label}")
            some = trial.few(FEW) if label == "1 - SSIM" else trial
            row, allowed = _rows(some, compare, allowed)
            rows += [{"set": name, "distance": label, **each} for each in row]
    return Outcome(
        said,
        {"table": rows},
        {"side": SIDE, "images searched": SEARCHED, "held out": HELD_OUT, "copies of each kind": ALTERED},
    )


def _rows(
    trial: Trial, compare: Callable[[np.ndarray, np.ndarray], Nearest], allowed: float | None
) -> tuple[list[dict[str, Any]], float]:
    """Return rows at the rule's ratio and at that of `allowed` mistakes, and the mistakes of the first."""
    nearest = compare(trial.copies, trial.images)
    of_copies, held = ratios(nearest), ratios(compare(trial.held_out, trial.images))
    own = nearest[1][:, 0] == trial.origin
    mistakes = float((held < RATIO).mean())
    cuts = {f"{RATIO:g}, as verify": RATIO}
    if allowed is not None:
        at = float(np.quantile(held, allowed, method="lower"))
        cuts[f"{at:.2f}, for the mistakes of pixels"] = at
    rows = []
    for label, cut in cuts.items():
        found = {kind: f"{100 * (own & (of_copies < cut))[trial.kind == kind].mean():.0f}" for kind in ALTERATIONS}
        rows.append({"ratio below": label, "held-out images that hit, %": f"{100 * (held < cut).mean():.1f}", **found})
    return rows, mistakes if allowed is None else allowed
