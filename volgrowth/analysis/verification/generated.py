"""Rates of generation: which images' rates are measured, and what the rates say together.

Rates of different pictures are of copies of different images, so that they add up: their sum is the share of the
model's samples that are copies of one of them. An audit's own samples check them: a rate is compared with the share of
samples that hit the picture, where at least one does.
"""

from math import exp
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.as_numpy import as_floats
from volgrowth.analysis.distinct import first_of_each
from volgrowth.analysis.judging import judge, ranking_column

MOST_RATED = 100
"""Images whose rates are measured, those of most evidence: each takes thousands of network evaluations."""
MOST_MEMBERS = 50
"""Images of one picture to which a draw may return."""
WITHIN = 3.0
"""Factor by which a rate and the share of samples may differ and still agree."""


def choose_rated(findings: pa.Table, verification: dict[str, Any] | None = None) -> np.ndarray:
    """Return the rows that stand for flagged or proven pictures, those of most evidence first, (images,).

    Args:
        findings: with the columns of `records.FINDINGS`.
        verification: part `verification` of the summary; None if no samples were drawn.
    """
    known = judge(findings, verification)
    rows = np.flatnonzero(known.found & known.first)
    score = as_floats(findings[ranking_column(findings)])[rows]
    order = np.argsort(-np.nan_to_num(score, nan=-np.inf), kind="stable")
    return findings["row"].to_numpy()[rows[order]][:MOST_RATED]


def members_of(findings: pa.Table, row: int) -> np.ndarray:
    """Return the first row of each image in the picture of a row, the row's own image first."""
    numbers, cluster = findings["row"].to_numpy(), findings["cluster"].to_numpy()
    there = np.flatnonzero(cluster == cluster[np.flatnonzero(numbers == row)[0]])
    identical = findings["identical"].to_numpy()[there]
    own = identical[numbers[there] == row][0]
    rows = numbers[there][first_of_each(identical)]
    others = [other for other in rows.tolist() if other != own]
    return np.array([row, *others][:MOST_MEMBERS])


def with_rates(findings: pa.Table, rates: pa.Table) -> pa.Table:
    """Return the findings with the rates of each measured picture in all of its rows."""
    place = pc.index_in(findings["cluster"], value_set=rates["cluster"].combine_chunks())
    for name in ("rate", "rate_low", "rate_high"):
        column = pc.take(rates[name].cast(pa.float32()), place)
        index = findings.schema.get_field_index(name)
        field = pa.field(name, pa.float32())
        if index < 0:  # findings of a version that knew no rates
            findings = findings.append_column(field, column)
        else:
            findings = findings.set_column(index, findings.field(index), column)
    return findings


def summarize_rates(
    findings: pa.Table, rates: pa.Table, verification: dict[str, Any], conditional: bool
) -> dict[str, Any]:
    """Summarise rates.

    Args:
        findings: with `verified_hits`, as in `records.FINDINGS`.
        rates: with the columns of `records.RATES`.
        verification: part `verification` of the summary.
        conditional: True if each rate is under the image's own condition, while samples were under those of random
            rows: then rates do not add up, and samples do not check them.

    Returns:
        Part `rates` of `verification` in `summary.json`.
    """
    known, judged = rates.filter(rates["rate"].is_valid()), judge(findings, verification)
    return {
        "found": judged.images(judged.found),
        "images": len(rates),
        "measured": len(known),
        "conditional": conditional,
        "evaluations": pc.sum(rates["nfe"]).as_py() or 0,
        "copies_per_million": None if conditional or not len(known) else _per_million(known),
        "checked": None if conditional else _checked(findings, known, verification["samples"]),
    }


def _per_million(known: pa.Table) -> dict[str, float]:
    """Add up rates, with the 95% interval of the sum: their errors are independent."""
    rate, high = known["rate"].to_numpy(), known["rate_high"].to_numpy()
    total = float(rate.sum())
    error = float(np.sqrt(np.square(rate * np.log(high / rate)).sum())) / total
    return {name: 1e6 * total * exp(sign * error) for name, sign in (("rate", 0), ("low", -1), ("high", 1))}


def _checked(findings: pa.Table, known: pa.Table, samples: int) -> dict[str, Any] | None:
    """Compare rates with the samples that hit the same pictures; None if none of these was hit."""
    first = findings.filter(pc.equal(findings["row"], findings["identical"]))
    hits = np.array(
        [
            pc.sum(pc.fill_null(first.filter(pc.equal(first["cluster"], cluster))["verified_hits"], 0)).as_py() or 0
            for cluster in known["cluster"].to_pylist()
        ],
        float,
    )
    seen = hits > 0
    if not seen.any():
        return None
    ratio = known["rate"].to_numpy()[seen] / (hits[seen] / samples)
    return {
        "images": int(seen.sum()),
        "ratio": float(np.exp(np.log(ratio).mean())),
        "factor": WITHIN,
        "within": int((abs(np.log(ratio)) <= np.log(WITHIN)).sum()),
    }
