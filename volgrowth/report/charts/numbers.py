"""Numbers behind the figures and the table of copies, which `summary.json` records too."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.as_numpy import as_mask
from volgrowth.analysis.judging import strongest

BINS = 44
_REACH = 12.0
"""Histograms reach this many interquartile ranges beyond the quartiles; values beyond are in the outermost bars."""

_SIZES = 25
_GROUP_SIZES = (1, 2, 5, 10, 100, 1000)
LARGEST = 12
FIGURES = ("evidence", "growth", "excess-growth", "complexity", "levels", "returns")
"""Names of all figures; a report has those that its audit has numbers for."""


@dataclass(frozen=True)
class Bars:
    """A histogram of `BINS` bins.

    Attributes:
        edges: of the bins, (BINS + 1,).
        ordinary: audited images per bin that are not notable, (BINS,).
        notable: audited images per bin that are, (BINS,).
        held_out: held-out images per bin, (BINS,); None without any.
        beyond: audited images outside the edges, which count in the first and the last bin.
    """

    edges: np.ndarray
    ordinary: np.ndarray
    notable: np.ndarray
    held_out: np.ndarray | None
    beyond: int


def count_bars(values: np.ndarray, heldout: np.ndarray | None, notable: np.ndarray) -> Bars:
    """Count the bars of a histogram.

    Args:
        values: of the audited images, (n,); NaN if missing.
        heldout: values of the held-out images, (m,), without NaN.
        notable: mask of the audited images that are notable, (n,).
    """
    counts = BarCounts(bar_edges(values[np.isfinite(values)], heldout))
    counts.add(values, notable)
    return counts.bars(heldout)


class BarCounts:
    """Bars of a histogram with these edges, counted a part at a time."""

    def __init__(self, edges: np.ndarray):
        self._edges, self._beyond = edges, 0
        self._ordinary, self._notable = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)

    def add(self, values: np.ndarray, notable: np.ndarray) -> None:
        """Count audited images; the arguments are those of `count_bars`."""
        finite = np.isfinite(values)
        self._ordinary += self._counted(values[finite & ~notable])
        self._notable += self._counted(values[finite & notable])
        outside = (values[finite] < self._edges[0]) | (values[finite] > self._edges[-1])
        self._beyond += int(np.count_nonzero(outside))

    def bars(self, heldout: np.ndarray | None) -> Bars:
        """Return the bars, with those of the held-out images."""
        held = self._counted(heldout) if heldout is not None and heldout.size else None
        return Bars(self._edges, self._ordinary, self._notable, held, self._beyond)

    def _counted(self, some: np.ndarray) -> np.ndarray:
        return np.histogram(np.clip(some, self._edges[0], self._edges[-1]), self._edges)[0]


def bar_edges(values: np.ndarray, heldout: np.ndarray | None) -> np.ndarray:
    """Return the edges of a histogram of finite values, (BINS + 1,); of very many values a sample gives them."""
    everything = values if heldout is None else np.concatenate([values, heldout])
    if not everything.size:
        return np.linspace(0.0, 1.0, BINS + 1)
    low, high = float(everything.min()), float(everything.max())
    first, third = np.quantile(everything, [0.25, 0.75])
    if third > first:
        reach = _REACH * (third - first)
        low, high = max(low, float(first - reach)), min(high, float(third + reach))
    margin = 0.02 * (high - low) or 0.02 * max(1.0, abs(high))
    return np.linspace(low - margin, high + margin, BINS + 1)


@dataclass(frozen=True)
class Spread:
    """Median and central share of one quantity along another: four arrays of equal length."""

    at: np.ndarray
    low: np.ndarray
    median: np.ndarray
    high: np.ndarray


def expected_by_size(sizes: np.ndarray, expected: np.ndarray) -> Spread | None:
    """Return median and central 80% of the expected growth (n,) along the PNG size (n,); None without any image."""
    known = np.isfinite(expected) & (sizes > 0)
    sizes, expected = sizes[known], expected[known]
    if not sizes.size:
        return None
    # of equal width on the log axis: bins of equal count would straddle the gap between plain and other images
    edges = np.geomspace(sizes.min(), sizes.max() + 1, _SIZES)
    bins = np.digitize(sizes, edges)
    occupied = np.unique(bins)
    centres = np.array([np.median(sizes[bins == k]) for k in occupied])
    low, middle, high = np.array([np.quantile(expected[bins == k], [0.1, 0.5, 0.9]) for k in occupied]).T
    return Spread(centres, low, middle, high)


@dataclass(frozen=True)
class LevelRates:
    """Growth at each noise level, of flagged images and of their controls.

    Attributes:
        pairs: number of flagged images, and of controls.
        axis: `noise level`, or `step` if rates belong to steps.
        flagged: spread over the flagged images.
        controls: spread over their controls.
    """

    pairs: int
    axis: str
    flagged: Spread
    controls: Spread


def counts_directions(measure: dict[str, Any]) -> bool:
    """Return True if growth is in directions per e-fold of noise, False if in nats; `measure` as in the summary."""
    return measure["preset"] == "screen" or "levels" in measure  # levels: preset standard of older audits


def level_rates(scores: pa.Table, pairs: Sequence[tuple[int, int]], measure: dict[str, Any]) -> LevelRates | None:
    """Return medians and quartiles of the column `rates` over pairs of (flagged, control) rows; None without rates.

    `measure` holds the settings of the measure, as in the summary.
    """
    wanted = pa.array(sorted({row for pair in pairs for row in pair}), pa.int64())
    some = scores.select(["row", "rates"]).filter(pc.is_in(scores["row"], value_set=wanted))
    by_row = {row: values for row, values in zip(*some.to_pydict().values(), strict=True) if values}
    both = [(by_row[a], by_row[b]) for a, b in pairs if a in by_row and b in by_row]
    values = np.array(both, float)
    if not both or values.shape[2] < 2:  # a single level is no curve
        return None
    axis, at = _levels(measure, values.shape[2])

    def spread(some: np.ndarray) -> Spread:
        return Spread(at, *np.quantile(some, [0.25, 0.5, 0.75], axis=0))

    return LevelRates(len(both), axis, spread(values[:, 0]), spread(values[:, 1]))


def _levels(measure: dict[str, Any], count: int) -> tuple[str, np.ndarray]:
    """Return the axis of the rates and their places on it: steps, if a model's own table has joined some levels."""
    levels: Sequence[float] = measure.get("levels") or ()
    if "num_levels" in measure:
        levels = np.geomspace(measure["smallest_level"], measure["largest_level"], measure["num_levels"]).tolist()
    return ("noise level", np.array(levels, float)) if len(levels) == count else ("step", np.arange(1.0, count + 1))


class GroupCounts:
    """Pictures with a score by the number of their rows, and the largest of them, counted a part at a time."""

    def __init__(self) -> None:
        self._images = np.zeros((len(_GROUP_SIZES), 2), np.int64)  # all, and flagged ones
        self._largest = pa.table({"row": pa.array([], pa.int64()), "rows": pa.array([], pa.int32()), "flagged": []})
        self._largest = self._largest.cast(pa.schema({"row": pa.int64(), "rows": pa.int32(), "flagged": pa.int64()}))
        self._pixels: dict[int, list[np.ndarray]] = {}

    def add(self, findings: pa.Table, first: np.ndarray) -> None:
        """Count findings, of which the rows in the mask `first` stand for their pictures."""
        shown = pa.array(first & findings["growth"].is_valid().to_numpy())
        scored = findings.select(["row", "cluster", "copies", "memorized"]).filter(shown)
        copies = pc.fill_null(scored["copies"], 1).to_numpy()
        flagged = as_mask(scored["memorized"])
        band = np.searchsorted(_GROUP_SIZES, copies, side="right") - 1
        for column, some in enumerate((band, band[flagged])):
            self._images[:, column] += np.bincount(some[some >= 0], minlength=len(_GROUP_SIZES))
        table = pa.table({"row": scored["cluster"], "rows": copies, "flagged": flagged.astype(int)})
        table = pa.concat_tables([self._largest, table.filter(pc.greater(table["rows"], 1)).cast(self._largest.schema)])
        self._largest = table.sort_by([("rows", "descending"), ("row", "ascending")]).slice(0, LARGEST)

    @property
    def largest(self) -> list[int]:
        """Names of the largest groups: their smallest rows."""
        return self._largest["row"].to_pylist()

    def count_images(self, findings: pa.Table) -> None:
        """Take note of images of different pixels in the largest groups, after all rows were counted."""
        wanted = pa.array(self.largest, pa.int64())
        members = findings.select(["cluster", "identical"]).filter(pc.is_in(findings["cluster"], value_set=wanted))
        cluster, identical = members["cluster"].to_numpy(), members["identical"].to_numpy()
        for name in np.unique(cluster).tolist():
            self._pixels.setdefault(name, []).append(np.unique(identical[cluster == name]))

    def numbers(self) -> dict[str, Any]:
        """Return the counts, `by_rows`, and the `largest` groups with their number of images of different pixels."""
        bands = [
            {"from": low, "to": after and after - 1, "images": int(images), "flagged": int(flagged)}
            for low, after, (images, flagged) in zip(_GROUP_SIZES, (*_GROUP_SIZES[1:], None), self._images, strict=True)
            if images
        ]
        largest = [
            {**group, "images": len(np.unique(np.concatenate(self._pixels[group["row"]])))}
            for group in self._largest.to_pylist()
        ]
        return {"by_rows": bands, "largest": largest}


def duplicate_groups(findings: pa.Table) -> dict[str, Any]:
    """Count pictures with a score by the number of their rows, and list the largest; `findings` of all rows."""
    counts = GroupCounts()
    counts.add(findings, strongest(findings))
    counts.count_images(findings)
    return counts.numbers()


def plain_numbers(numbers: Any) -> Any:
    """Turn dataclasses and arrays into dicts and lists for JSON; floats keep six figures."""
    if isinstance(numbers, Bars | Spread | LevelRates):
        return plain_numbers(asdict(numbers))
    if isinstance(numbers, dict):
        return {name: plain_numbers(value) for name, value in numbers.items()}
    if isinstance(numbers, np.ndarray):
        return [float(f"{value:.6g}") if numbers.dtype.kind == "f" else int(value) for value in numbers]
    return numbers
