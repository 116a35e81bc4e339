"""Cards of the gallery: one for each picture among the exhibits, an image with its copies and near duplicates."""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from volgrowth.analysis.judging import ranking_column, strongest
from volgrowth.credentials import redacted
from volgrowth.report.formats import missing, number, rough, score, signed
from volgrowth.report.gallery.exhibits import Exhibit, NearestSample, Shown, of_rows
from volgrowth.report.gallery.pictures import data_url
from volgrowth.report.words import card_reason

Card = dict[str, Any]

ROWS_LISTED = 40
# what the columns of the evidence's parts begin with; those of another version's findings may be others
PART = "evidence_"

FILTERS = {
    "memorized": "flagged as memorized",
    "reproduced": "reproduced in samples",
    "unhit": "flagged, hit by no sample",
    "copied": "flagged, with copies or near duplicates",
    "single": "flagged, without copies",
    "precursor": "precursors",
    "outside": "not judged",
    "marked": "with a mark",
    "unflagged": "not flagged",
}
SORTS = {
    "evidence:-1": "evidence, highest first",
    "evidence:1": "evidence, lowest first",
    "excess:-1": "excess growth, highest first",
    "growth:-1": "growth, highest first",
    "q:1": "q, lowest first",
    "loss:1": "loss, lowest first",
    "copies:-1": "copies, most first",
    "hits:-1": "samples that hit, most first",
    "row:1": "row",
}

_SCORES = {
    "growth": "growth",
    "expected": "expected_growth",
    "excess": "excess_growth",
    "evidence": "evidence",
    "p": "p_value",
    "q": "q_value",
    "contrast": "growth_contrast",
    "loss": "loss",
    "hits": "verified_hits",
    "bound": "false_bound",
}


def make_cards(
    scores: pa.Table,
    findings: pa.Table,
    shown: Shown,
    truth_rows: Collection[int] = (),
    fdr: float | None = None,
    counts: Mapping[int, int] | None = None,
    weights: Mapping[str, float] | None = None,
) -> list[Card]:
    """Make the cards by evidence, highest first, those without a score last.

    Findings of an older version have no evidence: excess growth takes its place.

    A card stands for all rows of a cluster and shows the scores of the highest among the exhibits.

    Args:
        scores: all rows, with the columns of `records.SCORES`.
        findings: all rows, with the columns of `records.FINDINGS`.
        shown: the exhibits and their pictures.
        truth_rows: rows of images that samples reproduced.
        fdr: rate of false discoveries at which images are flagged; None if nothing was calibrated.
        counts: number of rows with the same pixels, by the smallest of these rows, if the tables hold only some rows.
        weights: of the parts of the evidence, by their names; those that are not named count once.

    Returns:
        The variables of `card.html.j2` for each card.

    Raises:
        ValueError: an exhibit is of a row that the tables do not have.
    """
    exhibits = {exhibit.row: exhibit for exhibit in shown.exhibits}
    ranking = ranking_column(findings)
    records = [{**record, "evidence": record[ranking]} for record in _records(scores, findings, sorted(exhibits))]
    copies = _copies(scores, {r["content_hash"] for r in records} - {None})
    partners = sorted({exhibit.control for exhibit in shown.exhibits if exhibit.control is not None})
    excess_of = dict(zip(partners, of_rows(findings, partners)["excess_growth"].to_pylist(), strict=True))
    ranked = _sorted_finite(findings[ranking].filter(pa.array(strongest(findings))))
    truth = frozenset(of_rows(findings, list(truth_rows))["cluster"].to_pylist())
    cards = []
    for rank, record in enumerate(_distinct(records), 1):
        rows = copies.get(record["content_hash"], np.array([record["row"]]))
        card = _card(record, rows, counts.get(record["identical"], 1) if counts is not None else len(rows))
        card["rank"] = rank
        card["reproduced"] = record["cluster"] in truth
        card["share_below"] = _share_below(ranked, card["evidence"])
        card["parts"] = _parts(record, weights or {}) if ranking == "evidence" else None
        card["rate"] = _rate(record)
        card["reason"] = card_reason(card, fdr)
        card["kinds"] = _kinds(card)
        card["picture"] = _url(shown.rows.get(card["row"]))
        card["beside"] = list(_beside(card, exhibits[card["row"]], shown, excess_of))
        cards.append(card)
    return cards


def fit_cards(cards: Sequence[Card], draw: Callable[[Card], str], room: int) -> tuple[list[Markup], int]:
    """Draw the cards that fit into a number of bytes.

    Texts go first: the first card whose text does not fit is left out, with all after it. Pictures fill the rest: the
    first card whose pictures do not fit goes without, as do all after it.

    Args:
        cards: in the order of the gallery.
        draw: draws a card as HTML.
        room: bytes that the cards may take, in UTF-8.

    Returns:
        The cards as HTML, and the number of them that have their pictures.
    """
    texts, spent = [], 0
    for card in cards:
        texts.append(draw(_without_pictures(card)))
        spent += len(texts[-1].encode())
        if spent > room:
            spent -= len(texts.pop().encode())
            break
    pictured = 0
    for index, text in enumerate(texts):
        full = draw(cards[index])
        spent += len(full.encode()) - len(text.encode())
        if spent > room:
            break
        texts[index] = full
        pictured += cards[index]["picture"] is not None
    return [Markup(text) for text in texts], pictured


def _without_pictures(card: Card) -> Card:
    """Return a card without its pictures."""
    return {**card, "picture": None, "beside": [{**each, "picture": None} for each in card["beside"]]}


def _records(scores: pa.Table, findings: pa.Table, rows: list[int]) -> list[Card]:
    merged: dict[int, Card] = defaultdict(dict)
    for table in (findings, scores):
        for record in of_rows(table, rows).to_pylist():
            merged[record["row"]].update(record)
    unknown = [row for row in rows if len(merged[row]) < len({*scores.column_names, *findings.column_names})]
    if unknown:
        raise ValueError(f"exhibits must be of audited rows, got row {unknown[0]}: not in scores and findings")
    return [merged[row] for row in rows]


def _distinct(records: Iterable[Card]) -> list[Card]:
    """Return the highest record of each cluster, in the order of the gallery."""
    best: dict[int, Card] = {}
    for record in sorted(records, key=_order):
        best.setdefault(record["cluster"], record)
    return list(best.values())


def _order(record: Card) -> tuple[bool, float, int]:
    evidence = record["evidence"]
    return (True, 0.0, record["row"]) if missing(evidence) else (False, -evidence, record["row"])


def _parts(record: Card, weights: Mapping[str, float]) -> str:
    """Say how much each part counts in the evidence, in its unit times its weight."""
    parts = {column.removeprefix(PART): record[column] for column in record if column.startswith(PART)}
    return ", ".join(
        f"{name.replace('_', ' ')} {signed(weights.get(name, 1) * value)}"
        for name, value in parts.items()
        if not missing(value)
    )


def _rate(record: Card) -> str | None:
    """Say how often the model makes the image; None if that was not measured."""
    values = [record.get(name) for name in ("rate", "rate_high", "rate_low")]
    if any(missing(value) for value in values):
        return None
    once, most, fewest = (rough(1 / value) for value in values if value)
    return f"1 in {once} samples ({most} to {fewest})"


def _copies(scores: pa.Table, hashes: Collection[int]) -> dict[int, np.ndarray]:
    """Return all rows of the data set that show the image with each content hash, sorted."""
    table = scores.select(["row", "content_hash"])
    table = table.filter(pc.is_in(table["content_hash"], value_set=pa.array(sorted(hashes), pa.uint64())))
    grouped = table.sort_by("row").group_by("content_hash", use_threads=False).aggregate([("row", "list")])
    return {group["content_hash"]: np.array(group["row_list"]) for group in grouped.to_pylist()}


def _card(record: Card, rows: np.ndarray, copies: int) -> Card:
    return {
        **{
            key: record[key]
            for key in ("row", "image_id", "source", "status", "memorized", "precursor", "outside_range")
        },
        **{key: None if missing(record[name]) else record[name] for key, name in _SCORES.items()},
        "cluster": record["cluster"],
        "size": max(record["copies"] or 1, copies),
        "id_text": _exact(record["image_id"]),
        "marks": record["marks"] or [],
        "copies": copies,
        "near_copies": max(0, (record["copies"] or 0) - copies),
        "rows": rows[:ROWS_LISTED].tolist(),
    }


def _exact(image_id: str | None) -> str:
    """Return an id as a JSON string in ASCII, which hides no character; an empty one for an id with a secret in it."""
    if image_id is None or redacted(image_id) != image_id:
        return '""'
    return json.dumps(image_id).replace("\x7f", "\\u007f")


def _kinds(card: Card) -> list[str]:
    """Return the names of the `FILTERS` that a card passes."""
    flagged, several = bool(card["memorized"]), card["copies"] + card["near_copies"] > 1
    passes = {
        "memorized": flagged,
        "reproduced": card["reproduced"],
        "unhit": flagged and card["hits"] == 0,
        "copied": flagged and several,
        "single": flagged and not several,
        "precursor": card["precursor"],
        "outside": card["outside_range"],
        "marked": bool(card["marks"]),
        "unflagged": card["memorized"] is False,
    }
    return [kind for kind in FILTERS if passes[kind]]


def _beside(card: Card, exhibit: Exhibit, shown: Shown, excess_of: Mapping[int, float | None]) -> Iterable[Card]:
    """Yield the pictures beside that of the card, each with its words."""
    if exhibit.sample is not None:
        yield _sample(exhibit.sample, shown.samples.get(exhibit.sample.number))
    elif card["memorized"] and card["hits"] is not None:
        yield {"name": "nearest sample", "note": "none: each was nearer to another image", "picture": None}
    if exhibit.control is not None:
        row = exhibit.control
        note = f"row {row}, excess {signed(excess_of.get(row))}"
        yield {"name": "control", "note": note, "picture": _url(shown.rows.get(row))}
    for row in exhibit.duplicates:
        yield {"name": "near duplicate", "note": f"row {row}", "picture": _url(shown.rows.get(row))}


def _sample(sample: NearestSample, picture: bytes | None) -> Card:
    note = f"no. {number(sample.number)}, {'a copy' if sample.hit else 'no copy'}, distance {score(sample.distance)}"
    return {"name": "nearest sample", "note": note, "picture": _url(picture)}


def _url(picture: bytes | None) -> str | None:
    return data_url(picture) if picture else None


def _sorted_finite(column: pa.ChunkedArray) -> np.ndarray:
    values = column.to_numpy()
    return np.sort(values[np.isfinite(values)])


def _share_below(ordered: np.ndarray, value: float | None) -> float | None:
    if value is None or not ordered.size:
        return None
    return float(np.searchsorted(ordered, value)) / ordered.size
