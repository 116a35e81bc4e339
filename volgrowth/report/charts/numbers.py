"""Numbers behind the figures and the table of copies, which `summary.json` records too."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.as_numpy import as_mask
from volgrowth.analysis.distinct import strongest_rows

BINS = 44
_REACH = 12.0
"""Histograms reach this many interquartile ranges beyond the quartiles; values beyond are in the outermost bars."""

_SIZES = 25
_GROUP_SIZES = (1, 2, 5, 10, 100, 1000)
LARGEST = 12


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
    finite = np.isfinite(values)
    edges = _edges(values[finite], heldout)
    low, high = edges[0], edges[-1]

    def counted(some: np.ndarray) -> np.ndarray:
        return np.histogram(np.clip(some, low, high), edges)[0]

    held = counted(heldout) if heldout is not None and heldout.size else None
    beyond = int(np.count_nonzero((values[finite] < low) | (values[finite] > high)))
    return Bars(edges, counted(values[finite & ~notable]), counted(values[finite & notable]), held, beyond)


def _edges(values: np.ndarray, heldout: np.ndarray | None) -> np.ndarray:
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


def duplicate_groups(findings: pa.Table) -> dict[str, Any]:
    """Count pictures with a score by the number of their rows, and list the largest."""
    shown = pa.array(strongest_rows(findings) & findings["growth"].is_valid().to_numpy())
    scored = findings.select(["row", "cluster", "copies", "memorized"]).filter(shown)
    copies = pc.fill_null(scored["copies"], 1).to_numpy()
    flagged = as_mask(scored["memorized"])
    bands = []
    for low, after in zip(_GROUP_SIZES, (*_GROUP_SIZES[1:], None), strict=True):
        inside = (copies >= low) & (copies < (after or np.inf))
        if inside.any():
            most = after - 1 if after else None
            bands.append({"from": low, "to": most, "images": int(inside.sum()), "flagged": int(flagged[inside].sum())})
    table = pa.table({"row": scored["cluster"], "rows": copies, "flagged": flagged.astype(int)})
    table = table.filter(pc.greater(table["rows"], 1)).sort_by([("rows", "descending"), ("row", "ascending")])
    return {"by_rows": bands, "largest": _with_images(table.slice(0, LARGEST).to_pylist(), findings)}


def _with_images(groups: list[dict[str, int]], findings: pa.Table) -> list[dict[str, int]]:
    """Return groups with the number of images of different pixels in each."""
    wanted = pa.array([group["row"] for group in groups], pa.int64())
    members = findings.filter(pc.is_in(findings["cluster"], value_set=wanted)).select(["cluster", "identical"])
    counted = members.group_by("cluster").aggregate([("identical", "count_distinct")]).to_pylist()
    images = {each["cluster"]: each["identical_count_distinct"] for each in counted}
    return [{**group, "images": images[group["row"]]} for group in groups]


def plain_numbers(numbers: Any) -> Any:
    """Turn dataclasses and arrays into dicts and lists for JSON; floats keep six figures."""
    if isinstance(numbers, Bars | Spread | LevelRates):
        return plain_numbers(asdict(numbers))
    if isinstance(numbers, dict):
        return {name: plain_numbers(value) for name, value in numbers.items()}
    if isinstance(numbers, np.ndarray):
        return [float(f"{value:.6g}") if numbers.dtype.kind == "f" else int(value) for value in numbers]
    return numbers
