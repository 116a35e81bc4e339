"""Exhibits of the gallery: rows, and the pictures beside each of them.

Beside a flagged image stand its near duplicates in the data set, a control (an unflagged image of the same complexity),
and the generated sample that came nearest to it, if samples were drawn.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.as_numpy import as_mask
from volgrowth.analysis.calibration.complexity import regressors
from volgrowth.analysis.controls import match_controls
from volgrowth.analysis.judging import strongest

DUPLICATES = 3
"""The most near duplicates beside an image."""

CONTROLS_AMONG = 200_000
"""The most unflagged images, drawn at random, among which controls are searched."""

_COLUMNS = ["row", "cluster", "identical", "memorized"]


class NearestSample(NamedTuple):
    """A generated sample: its number, its distance to the nearest image, and True if it is a copy of that image."""

    number: int
    distance: float
    hit: bool


@dataclass(frozen=True)
class Exhibit:
    """A row, with the rows of its near duplicates, the row of its control, and the sample nearest to it."""

    row: int
    duplicates: tuple[int, ...] = ()
    control: int | None = None
    sample: NearestSample | None = None

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows whose pictures the exhibit needs."""
        return (self.row, *self.duplicates, *(() if self.control is None else (self.control,)))


@dataclass(frozen=True)
class Shown:
    """The exhibits of a gallery and their pictures.

    Attributes:
        exhibits: in the order of the gallery.
        rows: thumbnails by row; those that could not be read are missing.
        samples: thumbnails by number of the sample.
        redacted: True if the page has no pictures by intent.
    """

    exhibits: Sequence[Exhibit] = ()
    rows: Mapping[int, bytes] = field(default_factory=dict)
    samples: Mapping[int, bytes] = field(default_factory=dict)
    redacted: bool = False


def choose_exhibits(
    scores: pa.Table, findings: pa.Table, rows: Sequence[int], samples: pa.Table | None
) -> list[Exhibit]:
    """Choose the exhibit of each row.

    Args:
        scores: all rows, with the columns of `records.SCORES`.
        findings: all rows, with the columns of `records.FINDINGS`.
        rows: to be shown.
        samples: with the columns of `records.SAMPLES`; None if none were drawn.
    """
    known = {record["row"]: record for record in of_rows(findings, rows).select(_COLUMNS).to_pylist()}
    duplicates = _duplicates(scores, findings, {row: record["cluster"] for row, record in known.items()})
    partner = _controls(scores, findings, [row for row in rows if known[row]["memorized"]])
    nearest = _nearest(samples) if samples is not None else {}
    return [Exhibit(row, duplicates[row], partner.get(row), nearest.get(known[row]["identical"])) for row in rows]


def of_rows(table: pa.Table, rows: Any) -> pa.Table:
    """Return the rows of a table with these numbers, sorted by number."""
    return table.filter(pc.is_in(table["row"], value_set=pa.array(rows, pa.int64()))).sort_by("row")


def _duplicates(scores: pa.Table, findings: pa.Table, cluster: Mapping[int, int]) -> dict[int, tuple[int, ...]]:
    """Return for each row those of its cluster with other pixels, the first row of each picture."""
    wanted = pa.array(sorted(set(cluster.values())), pa.int64())
    members = findings.select(["row", "cluster"]).filter(pc.is_in(findings["cluster"], value_set=wanted)).sort_by("row")
    content = of_rows(scores.select(["row", "content_hash"]), members["row"].to_numpy())["content_hash"]
    seen = content.is_valid().to_numpy()
    row, group = (members[name].to_numpy()[seen] for name in ("row", "cluster"))
    pixels = content.drop_null().to_numpy()
    own = dict(zip(row.tolist(), pixels.tolist(), strict=True)) if len(row) else {}
    _, first = np.unique(np.stack([group.astype(np.uint64), pixels]), axis=1, return_index=True)
    pictures: dict[int, list[int]] = defaultdict(list)
    for index in np.sort(first).tolist():
        pictures[int(group[index])].append(index)
    return {
        each: tuple(int(row[k]) for k in pictures[name] if int(pixels[k]) != own.get(each))[:DUPLICATES]
        for each, name in cluster.items()
    }


def _controls(scores: pa.Table, findings: pa.Table, flagged: Sequence[int]) -> dict[int, int]:
    """Return a control for each flagged row: the row of an unflagged image of the same complexity; none twice."""
    if not flagged:
        return {}
    hit = pc.greater(findings["verified_hits"], 0)
    free = findings["excess_growth"].is_valid().to_numpy() & ~(as_mask(findings["memorized"]) | as_mask(hit))
    allowed = findings["row"].to_numpy()[strongest(findings) & free]
    if len(allowed) > CONTROLS_AMONG:
        allowed = np.sort(np.random.default_rng(0).choice(allowed, CONTROLS_AMONG, replace=False))
    table = of_rows(scores, np.concatenate([flagged, allowed]))
    table = table.filter(table["png_bytes"].is_valid())
    rows = table["row"].to_numpy()
    features = np.nan_to_num(regressors(table))
    at = {row: index for index, row in enumerate(rows.tolist())}
    wanted = [row for row in flagged if row in at]
    found = match_controls(features, np.array([at[row] for row in wanted], int), np.flatnonzero(np.isin(rows, allowed)))
    return {row: int(rows[index]) for row, index in zip(wanted, found.tolist(), strict=True) if index >= 0}


def _nearest(samples: pa.Table) -> dict[int, NearestSample]:
    """Return the nearest sample of each image, by its number `identical`, among samples that are nearest to it."""
    known = samples.filter(samples["nearest_row"].is_valid())
    best: dict[int, NearestSample] = {}
    for record in known.sort_by([("distance", "ascending"), ("number", "ascending")]).to_pylist():
        best.setdefault(record["nearest_row"], NearestSample(record["number"], record["distance"], bool(record["hit"])))
    return best
