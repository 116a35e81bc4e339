"""Checks of a held-out set: it should share no image with the audited set, and show the same kinds of images.

Audited images are seen a part at a time, and counted: what is kept is as large as the held-out set.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.as_numpy import as_mask
from volgrowth.analysis.calibration.complexity import MEASURED, REGRESSORS, regressors
from volgrowth.analysis.distinct import first_of_each
from volgrowth.analysis.duplicates import Light, has_look, is_flat
from volgrowth.records import Status

# largest distance between two distribution functions at which two sets can pass for the same kinds of images
APART = 0.25

# largest difference of the shares of two sets below the median of one, likewise: more is not memorized
SHARE_APART = 0.2


class Overlap:
    """What the held-out images share with audited ones, as far as those were seen.

    Args:
        holdout: scores of the held-out images, as in `records.SCORES`.
    """

    def __init__(self, holdout: pa.Table):
        self._content, self._status, self._flat = holdout["content_hash"], holdout["status"], is_flat(holdout)
        known = holdout.select(["content_hash", "phash", "mean", "variance"]).filter(self._content.is_valid())
        self._held = np.unique(known["content_hash"].to_numpy())
        self._there, self._scored = (np.zeros(len(self._held), bool) for _ in range(2))
        self._look = _with_look(known)
        self._order = np.argsort(self._look["phash"].to_numpy(), kind="stable")
        self._phash = self._look["phash"].to_numpy()[self._order]
        self._light = Light.of(self._look)[self._order]
        self._alike = np.zeros(len(self._phash), bool)

    def see(self, scores: pa.Table) -> None:
        """Take in some audited images, with columns as in `records.SCORES`."""
        columns = ["content_hash", "status", "phash", "mean", "variance"]  # ids may be more than Arrow filters at once
        known = scores.select(columns).filter(scores["content_hash"].is_valid())
        content = known["content_hash"].to_numpy()
        place = np.minimum(np.searchsorted(self._held, content), max(len(self._held) - 1, 0))
        if not len(self._held):
            return
        same = self._held[place] == content
        self._there[place[same]] = True
        self._scored[place[same & as_mask(pc.equal(known["status"], Status.OK.value))]] = True
        self._compare(known.filter(pa.array(has_look(known))))

    def _compare(self, shown: pa.Table) -> None:
        """Mark the held-out images of which one of these has the perceptual hash and the light."""
        phash, light = shown["phash"].to_numpy(), Light.of(shown)
        left, right = (np.searchsorted(self._phash, phash, side) for side in ("left", "right"))
        for index in np.flatnonzero(right > left).tolist():
            some = slice(left[index], right[index])
            self._alike[some] |= self._light[some].agrees(light[np.array([index])])

    @property
    def shared(self) -> np.ndarray:
        """Mask of the held-out rows whose pixels are among the scored audited ones, (held-out rows,)."""
        return self._rows_of(self._held[self._scored])

    @property
    def alike(self) -> np.ndarray:
        """Mask of the held-out rows that look like an audited image of other pixels, (held-out rows,).

        They have its perceptual hash and light: a model that knows the one may know the other. Flat images share a
        perceptual hash whatever they show, and are passed over. Hashes must be equal, though those of
        `duplicate_clusters` may differ: among many audited images one is close to a held-out one by chance.
        """
        content = self._look["content_hash"].to_numpy()[self._order][self._alike]
        return self._rows_of(content[~np.isin(content, self._held[self._there])])

    @property
    def new(self) -> int:
        """Number of held-out images that were scored, not of one colour, and neither are nor look like audited ones."""
        usable = as_mask(pc.equal(self._status, Status.OK.value)) & ~self.alike & ~self._flat
        return len(np.setdiff1d(_numbers(self._content.filter(pa.array(usable))), self._held[self._there]))

    def _rows_of(self, content: np.ndarray) -> np.ndarray:
        return as_mask(pc.is_in(self._content, value_set=pa.array(content, pa.uint64())))


class Distribution:
    """How numbers of audited images lie among those of held-out ones: counts between any two of these.

    Args:
        held: the numbers of the held-out images, (m,).
    """

    def __init__(self, held: np.ndarray):
        self.values, counts = np.unique(held, return_counts=True)
        self._held = np.cumsum(counts)
        self._below, self._upto = (np.zeros(len(self.values) + 1, np.int64) for _ in range(2))

    def add(self, numbers: np.ndarray) -> None:
        """Count the numbers of some audited images, (n,)."""
        size = len(self.values) + 1
        self._upto += np.bincount(np.searchsorted(self.values, numbers, "left"), minlength=size)
        self._below += np.bincount(np.searchsorted(self.values, numbers, "right"), minlength=size)

    @property
    def count(self) -> int:
        """How many audited images were counted."""
        return int(self._below.sum())

    def distance(self) -> float:
        """Return the distance of Kolmogorov and Smirnov between audited and held-out images, in [0, 1]."""
        if not self.count or not len(self.values):
            return 1.0
        held = self._held / self._held[-1]
        at = np.cumsum(self._upto)[:-1] / self.count - held
        before = np.cumsum(self._below)[:-1] / self.count - np.concatenate([[0.0], held[:-1]])
        return float(max(np.abs(at).max(), np.abs(before).max()))


class Kinds:
    """In which regressor audited and held-out images differ most.

    Args:
        holdout: scores of the held-out images, as in `records.SCORES`.
    """

    def __init__(self, holdout: pa.Table):
        held = regressors(_distinct(holdout, MEASURED))
        self._held, self._distributions = len(held), [Distribution(column) for column in held.T]

    def see(self, scores: pa.Table) -> None:
        """Take in distinct audited images, of which each is seen once, with the columns of `MEASURED`."""
        for distribution, column in zip(self._distributions, regressors(scores).T, strict=True):
            distribution.add(column)

    def most_different(self) -> tuple[str, float] | None:
        """Return the regressor in which the two sets differ most, and its distance; None if they can pass for one kind.

        The distance is that of Kolmogorov and Smirnov between distinct images, in [0, 1]. A distance that chance alone
        exceeds once in a thousand times passes.
        """
        seen = self._distributions[0].count
        if not seen or not self._held:
            return None
        distances = [distribution.distance() for distribution in self._distributions]
        worst = int(np.argmax(distances))
        apart = distances[worst] > max(APART, _by_chance(seen, self._held))
        return (REGRESSORS[worst], distances[worst]) if apart else None


class Bulk:
    """How the evidence of audited and held-out images differs where it is low.

    Few memorized images have less evidence than the median of the held-out ones, so that they hardly change the share
    of audited images below it, and not the distribution there.

    Args:
        held: evidence of the held-out images that calibrated, (m,).
    """

    def __init__(self, held: np.ndarray):
        self._held, self._seen = len(held), 0
        self._median = np.median(held) if len(held) else 0.0
        low = held[held < self._median]
        self._held_low, self._low = len(low), Distribution(low)

    def see(self, evidence: np.ndarray) -> None:
        """Take in the evidence of distinct audited images, (n,); NaN of those that have none."""
        evidence = evidence[~np.isnan(evidence)]
        self._seen += len(evidence)
        self._low.add(evidence[evidence < self._median])

    def difference(self) -> tuple[float, float] | None:
        """Return how the two sets differ; None if they can pass for one kind.

        A difference that chance alone exceeds once in a thousand times passes.

        Returns:
            The share of the audited images below the held-out median, and the distance of Kolmogorov and Smirnov there.
        """
        if not self._seen or not self._held:
            return None
        low, held_low = self._low.count, self._held_low
        share = low / self._seen
        if abs(share - held_low / self._held) > max(SHARE_APART, _by_chance(self._seen, self._held)):
            return share, self._low.distance()
        apart = self._low.distance() if low and held_low else 0.0
        return (share, apart) if apart > max(APART, _by_chance(low or 1, held_low or 1)) else None


def _by_chance(one: int, other: int) -> float:
    """Return the distance that chance alone exceeds once in a thousand times, between samples of these sizes."""
    return float(1.95 * np.sqrt(1 / one + 1 / other))


def _distinct(table: pa.Table, columns: tuple[str, ...]) -> pa.Table:
    """Return some columns of the first row of each distinct image: no ids, of which Arrow takes 2 GiB at most."""
    table = table.select(["content_hash", *columns]).filter(table["content_hash"].is_valid())
    return table.take(pa.array(first_of_each(table["content_hash"].to_numpy())))


def _with_look(table: pa.Table) -> pa.Table:
    table = _distinct(table, ("phash", "mean", "variance"))
    return table.filter(pa.array(has_look(table)))


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return column.drop_null().to_numpy()
