"""The gallery: one card for each distinct image among those to show."""

import base64
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.report.formats import missing
from volgrowth.report.words import reason

Card = dict[str, Any]

ROWS_LISTED = 40


def gallery(
    scores: pa.Table,
    findings: pa.Table,
    thumbnails: Mapping[int, bytes],
    truth_rows: Collection[int] = (),
    fdr: float | None = None,
) -> list[Card]:
    """Cards by excess growth, highest first, those without a score last.

    A card stands for all identical images and shows the scores of the highest of them.

    Raises:
        ValueError: a thumbnail is of a row that the tables do not have.
    """
    records = _records(scores, findings, sorted(thumbnails))
    copies = _copies(scores, {r["content_hash"] for r in records} - {None})
    excesses = _sorted_finite(findings["excess_growth"])
    truth = frozenset(truth_rows)
    cards = []
    for rank, record in enumerate(_distinct(records), 1):
        rows = copies.get(record["content_hash"], np.array([record["row"]]))
        card = _card(record, rows, thumbnails[record["row"]])
        card["rank"] = rank
        card["reproduced"] = not truth.isdisjoint(rows.tolist())
        card["share_below"] = _share_below(excesses, card["excess"])
        card["reason"] = reason(card, fdr)
        cards.append(card)
    return cards


def _records(scores: pa.Table, findings: pa.Table, rows: list[int]) -> list[Card]:
    wanted = pa.array(rows, pa.int64())
    merged: dict[int, Card] = defaultdict(dict)
    for table in (findings, scores):
        for record in table.filter(pc.is_in(table["row"], value_set=wanted)).to_pylist():
            merged[record["row"]].update(record)
    unknown = [row for row in rows if len(merged[row]) < len({*scores.column_names, *findings.column_names})]
    if unknown:
        raise ValueError(f"thumbnails must be of audited rows, got row {unknown[0]}: not in scores and findings")
    return [merged[row] for row in rows]


def _distinct(records: Iterable[Card]) -> list[Card]:
    """The highest of each group of identical images, in the order of the gallery."""
    best: dict[tuple[str, int], Card] = {}
    for record in sorted(records, key=_order):
        known = record["content_hash"] is not None
        best.setdefault(("hash", record["content_hash"]) if known else ("row", record["row"]), record)
    return list(best.values())


def _order(record: Card) -> tuple[bool, float, int]:
    excess = record["excess_growth"]
    return (True, 0.0, record["row"]) if missing(excess) else (False, -excess, record["row"])


def _copies(scores: pa.Table, hashes: Collection[int]) -> dict[int, np.ndarray]:
    """All rows of the data set that show the image with this content hash, sorted."""
    table = scores.select(["row", "content_hash"])
    table = table.filter(pc.is_in(table["content_hash"], value_set=pa.array(sorted(hashes), pa.uint64())))
    table = table.sort_by([("content_hash", "ascending"), ("row", "ascending")])
    keys, starts = np.unique(table["content_hash"].to_numpy(), return_index=True)
    groups = np.split(table["row"].to_numpy(), starts[1:]) if keys.size else []
    return dict(zip(keys.tolist(), groups, strict=True))


def _card(record: Card, rows: np.ndarray, png: bytes) -> Card:
    names = {
        "growth": "growth",
        "expected": "expected_growth",
        "excess": "excess_growth",
        "p": "p_value",
        "q": "q_value",
        "loss": "loss",
    }
    return {
        **{
            key: record[key]
            for key in ("row", "image_id", "source", "status", "memorized", "precursor", "outside_range")
        },
        **{key: None if missing(record[name]) else record[name] for key, name in names.items()},
        "marks": record["marks"] or [],
        "copies": len(rows),
        "near_copies": max(0, (record["copies"] or 0) - len(rows)),
        "rows": rows[:ROWS_LISTED].tolist(),
        "png": "data:image/png;base64," + base64.b64encode(png).decode(),
    }


def _sorted_finite(column: pa.ChunkedArray) -> np.ndarray:
    values = column.to_numpy()
    return np.sort(values[np.isfinite(values)])


def _share_below(ordered: np.ndarray, value: float | None) -> float | None:
    if value is None or not ordered.size:
        return None
    return float(np.searchsorted(ordered, value)) / ordered.size
