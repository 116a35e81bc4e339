"""Rates of generation: which images' rates are measured, and what the rates say together.

Rates of different pictures are of copies of different images, so that they add up: their sum is the share of the
model's samples that are copies of one of them. An audit's own samples check them: a rate is compared with the share of
samples that hit the picture, where at least one does.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import exp
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.as_numpy import as_floats
from volgrowth.analysis.judging import JudgedAudit, JudgedTables
from volgrowth.records import FINDINGS

MOST_RATED = 100
"""Images whose rates are measured, those of most evidence: each takes thousands of network evaluations."""
MOST_MEMBERS = 50
"""Images of one picture to which a draw may return."""
WITHIN = 3.0
"""Factor by which a rate and the share of samples may differ and still agree."""


def choose_rated(judged: JudgedAudit | JudgedTables, asked: Sequence[int] = ()) -> tuple[pa.Table, int]:
    """Return row, cluster and identical of the rows whose rates are measured, and the number of rows asked for alone.

    They are rows that stand for flagged or proven pictures, those of most evidence first and up to `MOST_RATED` of
    them, and then one row of each other picture of which rows are `asked` for.
    """
    names = ["row", "cluster", "identical"]
    kept, score, wanted = [FINDINGS.empty_table().select(names)], np.empty(0), [FINDINGS.empty_table().select(names)]
    for part in judged.parts(["identical", "excess_growth"]):
        wanted.append(part.findings.filter(pa.array(np.isin(part.findings["row"].to_numpy(), asked))).select(names))
        some = part.findings.filter(pa.array(part.found & part.first))
        kept.append(some.select(names))
        known = np.nan_to_num(as_floats(some[judged.pictures.ranking]), nan=-np.inf)
        score = np.concatenate([score, known])
        best = np.argsort(-score, kind="stable")[:MOST_RATED]
        kept, score = [pa.concat_tables(kept).take(pa.array(best))], score[best]
    chosen, others = pa.concat_tables(kept), pa.concat_tables(wanted)
    cluster = others["cluster"].to_numpy()
    first = np.sort(np.unique(cluster, return_index=True)[1])
    others = others.take(pa.array(first[~np.isin(cluster[first], chosen["cluster"].to_numpy())]))
    return pa.concat_tables([chosen, others]), len(others)


def members_of(findings: Iterable[pa.Table], rated: pa.Table) -> dict[int, np.ndarray]:
    """Return by the row of each rated picture the first row of each of its images, the row's own image first.

    Args:
        findings: of all rows, some at a time, with the columns row, cluster and identical.
        rated: as `choose_rated` returns it.
    """
    clusters = np.unique(rated["cluster"].to_numpy())
    firsts: dict[int, list[int]] = {cluster: [] for cluster in clusters.tolist()}
    for part in findings:
        row, cluster = part["row"].to_numpy(), part["cluster"].to_numpy()
        there = np.isin(cluster, clusters) & (row == part["identical"].to_numpy())
        for one, number in zip(cluster[there].tolist(), row[there].tolist(), strict=True):
            if len(firsts[one]) <= MOST_MEMBERS:
                firsts[one].append(number)
    found = {}
    for row, cluster, own in zip(*(rated[n].to_pylist() for n in ("row", "cluster", "identical")), strict=True):
        found[row] = np.array([row, *(other for other in firsts[cluster] if other != own)][:MOST_MEMBERS])
    return found


def with_rates(findings: pa.Table, rates: pa.Table) -> pa.Table:
    """Return some of the findings with the rates of each measured picture in all of its rows."""
    place = pc.index_in(findings["cluster"], value_set=rates["cluster"].combine_chunks())
    for name in ("rate", "rate_low", "rate_high"):
        column = pc.take(rates[name].cast(pa.float32()), place)
        index = findings.schema.get_field_index(name)
        findings = findings.set_column(index, findings.field(index), column)
    return findings


def summarize_rates(
    judged: JudgedAudit | JudgedTables, rates: pa.Table, asked: int, samples: int, conditional: bool
) -> dict[str, Any]:
    """Summarise rates.

    Args:
        judged: all rows, with `verified_hits`.
        rates: with the columns of `records.RATES`.
        asked: how many of them are of pictures that are neither flagged nor proven, and were asked for.
        samples: number of samples that were drawn.
        conditional: True if each rate is under the image's own condition, while samples were under those of random
            rows: then rates do not add up, and samples do not check them.

    Returns:
        Part `rates` of `verification` in `summary.json`.
    """
    known, found = rates.filter(rates["rate"].is_valid()), 0
    clusters = np.unique(known["cluster"].to_numpy())
    hits = dict.fromkeys(clusters.tolist(), 0)
    for part in judged.parts(["identical", "verified_hits"]):
        found += part.images(part.found)
        table = part.findings
        cluster, row = table["cluster"].to_numpy(), table["row"].to_numpy()
        there = np.isin(cluster, clusters) & (row == table["identical"].to_numpy())
        counted = pc.fill_null(table["verified_hits"], 0).to_numpy()[there]
        for one, number in zip(cluster[there].tolist(), counted.tolist(), strict=True):
            hits[one] += number
    return {
        "found": found,
        "images": len(rates),
        "asked": asked,
        "measured": len(known),
        "conditional": conditional,
        "evaluations": pc.sum(rates["nfe"]).as_py() or 0,
        "copies_per_million": None if conditional or not len(known) else _per_million(known),
        "checked": None if conditional else _checked(hits, known, samples),
    }


def _per_million(known: pa.Table) -> dict[str, float]:
    """Add up rates, with the 95% interval of the sum: their errors are independent."""
    rate, high = known["rate"].to_numpy(), known["rate_high"].to_numpy()
    total = float(rate.sum())
    error = float(np.sqrt(np.square(rate * np.log(high / rate)).sum())) / total
    return {name: 1e6 * total * exp(sign * error) for name, sign in (("rate", 0), ("low", -1), ("high", 1))}


def _checked(by_cluster: Mapping[int, int], known: pa.Table, samples: int) -> dict[str, Any] | None:
    """Compare rates with the samples that hit the same pictures; None if none of these was hit."""
    hits = np.array([by_cluster[cluster] for cluster in known["cluster"].to_pylist()], float)
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
