"""Decide what to do with each row of an audited data set: findings and a policy become a list.

Rows of one `cluster` are one picture: if any of its rows is flagged, all of them are. The first of these rules that
fits a row decides its action:

1. The row is on the allow-list: `keep`.
2. The row, or another of its cluster, is opted out: `drop`.
3. The row is flagged, or samples reproduced it and the policy goes by the rate. The policy's action `drop` drops it.
   `dedupe` keeps the smallest row of its cluster, or the allowed rows instead, and drops the others. `downweight` gives
   each row of the cluster a weight of one over their number: one effective copy. These two leave a picture without
   copies to `review`: there is no copy to take away.
4. Samples hit the row and it is not flagged, or it was not judged (it has no score, or is outside the range of the
   calibration): `review`.
5. Otherwise: `keep`.

`review` changes nothing in an applied data set; it says that a person should look.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.as_numpy import as_mask
from volgrowth.analysis.calibration.error_rates import FDR
from volgrowth.analysis.calibration.false_bounds import CONFIDENCE, innocent_among
from volgrowth.analysis.judging import judge, proven_rows, ranking_column, strongest_above
from volgrowth.audit.output.fragments import read_scores
from volgrowth.audit.output.result import Audit
from volgrowth.errors import OutputError, UsageError
from volgrowth.records import Status, column
from volgrowth.storage.store import Store


class Action(StrEnum):
    """Fate of a row in the curated data set. Every row has exactly one."""

    KEEP = "keep"
    DROP = "drop"
    DOWNWEIGHT = "downweight"
    """the row stays, with a weight below one"""
    REVIEW = "review"
    """the row stays, and a person should look at it"""


CURATION = pa.schema(
    [
        column("row", pa.int64(), "position of the image in the frozen order of the data set; unique"),
        column("image_id", pa.string(), "id of the image, as in scores"),
        column("source", pa.string(), "file that the image came from, as in scores"),
        column("action", pa.string(), "keep, drop, downweight or review"),
        column("weight", pa.float64(), "weight of the row in training: 1, less for downweight, 0 for drop"),
        column("reason", pa.string(), "reason of the action; empty where the row is simply kept"),
        column("excess_growth", pa.float64(), "growth - expected_growth, as in findings"),
        column("evidence", pa.float64(), "evidence, as in findings; null in the list of an older audit"),
        column("false_bound", pa.float32(), "bound on the share of false flags up to this image, as in findings"),
        column("p_value", pa.float64(), "p-value, as in findings"),
        column("q_value", pa.float64(), "q-value of the row's cluster, as in findings"),
        column("cluster", pa.int64(), "smallest row of the group of near duplicates, as in findings"),
        column("audit", pa.string(), "audit that the list was made from: first digits of its manifest's digest"),
    ]
)


@dataclass(frozen=True)
class CurationPolicy:
    """Rule that decides which pictures are flagged, and the action on those that are.

    Attributes:
        by: `fdr` flags pictures whose q_value is at most `limit` and those that samples reproduced, `max_score` those
            whose evidence is above `limit`, and `top_k` the `limit` highest in evidence, with those that tie with the
            last of them. In an audit without evidence, of an older version, excess_growth takes its place.
        limit: see `by`.
        action: `drop`, `dedupe` (keep one row of each group of near duplicates) or `downweight` (give the rows of a
            group together the weight of one).
        allow: image ids or sources of rows that are always kept.
        opt_out: image ids or sources of rows that are always dropped.
    """

    by: Literal["fdr", "top_k", "max_score"] = "fdr"
    limit: float = FDR
    action: Literal["drop", "dedupe", "downweight"] = "drop"
    allow: frozenset[str] = frozenset()
    opt_out: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        fits = {
            "fdr": (0 < self.limit < 1, "above 0 and below 1"),
            "top_k": (self.limit >= 0, "0 or more"),
            "max_score": (isfinite(self.limit), "a number"),
        }
        good, expected = fits[self.by]
        if not good:
            raise UsageError(f"--{self.by.replace('_', '-')} {self.limit:g}: expected {expected}")
        if self.action not in ("drop", "dedupe", "downweight"):
            raise UsageError(f"--action {self.action}: expected drop, dedupe or downweight")


def make_list(audit: Audit, policy: CurationPolicy) -> pa.Table:
    """Make the list of a finished audit.

    Returns:
        A table with the columns of `CURATION`, one row per row of the data set, in row order.

    Raises:
        UsageError: no row has an allowed or opted-out id, or a row is both allowed and opted out.
        OutputError: no row was calibrated, so that the policy could flag none.
    """
    scores = read_scores(audit.store, audit.frozen, columns=("source", "status"))
    verification = audit.summary.get("verification")
    return decide_actions(audit.findings, scores, policy, list_digest(audit), verification)


def bound_innocent(
    findings: pa.Table, scores: pa.Table, policy: CurationPolicy, detection: dict[str, Any] | None
) -> str | None:
    """Say how many of the pictures that a policy flags are innocent, at most; None for a policy by the rate.

    The bound holds for every cut at once (`false_bounds`), so also for one chosen after looking at the images.

    Args:
        findings: of all rows.
        scores: their column `status`.
        policy: the rule.
        detection: part `detection` of the summary.
    """
    if policy.by == "fdr":
        return None
    if not detection or detection["null"] != "held-out":
        return "how many of these are innocent cannot be bounded without held-out images: audit with --holdout"
    if "trials" not in detection:
        return "how many of these are innocent was not bounded by the version that wrote this audit: audit again"
    held = detection["calibration_rows"]
    chosen, above = strongest_above(judge(findings), held)
    above = above[_Rows(findings, scores, policy, None).flagged[chosen]]
    most, confidence = innocent_among(above, held, detection["trials"]), f"with {CONFIDENCE:.0%} confidence"
    if not len(above):
        return None
    if most == len(above):
        return f"of these {most:,} images all may be innocent: {held:,} held-out images cannot tell {confidence}"
    return f"of these {len(above):,} images at most {most:,} are innocent, {confidence} for every cut at once"


def list_digest(audit: Audit) -> str:
    """Return the name of an audit in its lists: the first digits of its manifest's digest."""
    return audit.frozen.digest.removeprefix("sha256:")[:16]


def store_of(file: str) -> tuple[Store, str]:
    """Return the `Store` of a file's folder, and the file's name in it."""
    folder, _, name = file.rpartition("/")
    return Store(folder or ("/" if file.startswith("/") else ".")), name


def decide_actions(
    findings: pa.Table,
    scores: pa.Table,
    policy: CurationPolicy,
    audit: str,
    verification: dict[str, Any] | None = None,
) -> pa.Table:
    """Make the list of an audit from its tables; raises as `make_list`.

    Args:
        findings: of all rows.
        scores: their columns `source` and `status`.
        policy: the rule.
        audit: name of the audit in the list.
        verification: part `verification` of the summary; None if no samples were drawn.
    """
    names = scores["source"]
    allowed = _named(policy.allow, findings["image_id"], names, "--allow")
    opted_out = _named(policy.opt_out, findings["image_id"], names, "--opt-out")
    if (allowed & opted_out).any():
        row = int(np.argmax(allowed & opted_out))
        raise UsageError(f"row {row} ({findings['image_id'][row]}) is both in --allow and in --opt-out: remove one")
    rows = _Rows(findings, scores, policy, verification)
    actions = np.full(len(findings), Action.KEEP.value, object)
    reasons = np.full(len(findings), "", object)
    left = np.ones(len(findings), bool)
    for fits, action, why in rows.rules(allowed, opted_out):
        chosen = np.flatnonzero(fits & left)
        actions[chosen] = action.value
        reasons[chosen] = [why(row) for row in chosen.tolist()]
        left[chosen] = False
    weight = np.select([actions == Action.DROP, actions == Action.DOWNWEIGHT], [0.0, 1 / rows.size], 1.0)
    made = {
        "source": names,
        "action": pa.array(actions, pa.string()),
        "weight": pa.array(weight),
        "reason": pa.array(reasons, pa.string()),
        "audit": pa.repeat(pa.scalar(audit), len(findings)),
    }
    made |= {name: findings[name] for name in CURATION.names if name in findings.column_names and name not in made}
    nulls = {field.name: pa.nulls(len(findings), field.type) for field in CURATION}
    return pa.table([made.get(name, nulls[name]) for name in CURATION.names], CURATION)


class _Rows:
    """Arrays over all rows that the rules look at."""

    def __init__(
        self, findings: pa.Table, scores: pa.Table, policy: CurationPolicy, verification: dict[str, Any] | None
    ):
        known = judge(findings, verification)
        self.policy, self.judged = policy, known.judged
        self.proven = proven_rows(findings, verification)
        self.outside = as_mask(findings["outside_range"])
        self.status = scores["status"]
        self.scored = as_mask(pc.equal(self.status, Status.OK.value))
        self.hits = pc.fill_null(findings["verified_hits"], 0).to_numpy()
        self.cluster = findings["cluster"].to_numpy()
        _, self.first, self.group, sizes = np.unique(
            self.cluster, return_index=True, return_inverse=True, return_counts=True
        )
        self.size = sizes[self.group]
        self.name = "q_value" if policy.by == "fdr" else ranking_column(findings)
        self.value = findings[self.name].to_numpy()
        score = -self.value if policy.by == "fdr" else self.value
        self.score = np.where(np.isfinite(score) & known.judged, score, -np.inf)
        if policy.by == "fdr":
            self.score[self.proven] = np.inf
        order = np.lexsort((-np.arange(len(findings)), self.score, self.group))
        self.best = order[np.searchsorted(self.group[order], np.arange(len(sizes)), "right") - 1][self.group]
        self.threshold = self._threshold()
        self.flagged = self.score[self.best] >= self.threshold

    def _threshold(self) -> float:
        """Return the smallest score that is flagged."""
        limit, best = self.policy.limit, np.sort(self.score[self.best[self.first]])
        if self.policy.by == "top_k" and not limit:
            return np.inf
        judged = best[best > -np.inf]
        if not len(judged):
            raise OutputError(
                "no row of this audit has a calibrated score, so that nothing can be flagged: audit it with --holdout, "
                "or take --top-k 0 for a list of opt-outs alone"
            )
        if self.policy.by == "top_k":
            return judged[-min(int(limit), len(judged))]
        return -limit if self.policy.by == "fdr" else np.nextafter(limit, np.inf)

    def any_of_cluster(self, rows: np.ndarray) -> np.ndarray:
        """Return a mask of the rows whose cluster has one of the masked `rows`."""
        return np.bincount(self.group, rows)[self.group] > 0

    def rules(
        self, allowed: np.ndarray, opted_out: np.ndarray
    ) -> list[tuple[np.ndarray, Action, Callable[[int], str]]]:
        """Return the rules in their order, without the last: rows that fit, action, and reason for a row."""

        def departed(row: int) -> str:
            return "opted out" if opted_out[row] else f"an image of its cluster, {self.cluster[row]}, opted out"

        return [
            (allowed, Action.KEEP, lambda _: "on the allow-list"),
            (self.any_of_cluster(opted_out), Action.DROP, departed),
            *((self.flagged & fits, action, why) for fits, action, why in self._flagged_rules(allowed)),
            (self.any_of_cluster(self.proven), Action.REVIEW, lambda _: "samples reproduced it, and it is not flagged"),
            (self.any_of_cluster(self.hits > 0), Action.REVIEW, lambda _: "samples hit it, too few to prove a copy"),
            (~self.scored, Action.REVIEW, lambda row: f"not judged: it has no score ({self.status[row]})"),
            (self.outside, Action.REVIEW, lambda _: "not judged: outside the range of the calibration"),
        ]

    def _flagged_rules(self, allowed: np.ndarray) -> list[tuple[np.ndarray, Action, Callable[[int], str]]]:
        everything = np.ones(len(allowed), bool)
        if self.policy.action == "drop":
            return [(everything, Action.DROP, self._why)]

        def single(row: int) -> str:
            return f"{self._why(row)}; it has no copies to take away"

        def one_of(row: int) -> str:
            return f"{self._why(row)}; one of {self.size[row]} in its cluster"

        rules = [(self.size == 1, Action.REVIEW, single)]
        if self.policy.action == "downweight":
            return [*rules, (everything, Action.DOWNWEIGHT, one_of)]
        stays = np.zeros(len(allowed), bool)
        stays[self.first] = True
        stays &= ~self.any_of_cluster(allowed)
        kept = (stays, Action.KEEP, lambda row: f"{one_of(row)}, and the one that stays")
        return [*rules, kept, (everything, Action.DROP, one_of)]

    def _why(self, row: int) -> str:
        """Say why a row is flagged, by itself or through its cluster."""
        if self.score[row] < self.threshold:
            return f"in the cluster of row {self.best[row]}: {self._why(int(self.best[row]))}"
        value, limit = self.value[row], self.policy.limit
        if self.policy.by == "fdr":
            reasons = [f"q_value {value:.3g} <= {limit:g}"] if value <= limit and self.judged[row] else []
            return " and ".join([*reasons, *(["samples reproduced it"] if self.proven[row] else [])])
        if self.policy.by == "max_score":
            return f"{self.name} {value:.4g} > {limit:g}"
        return f"{self.name} {value:.4g}, among the {limit:g} highest"


def _named(ids: frozenset[str], image_id: pa.ChunkedArray, source: pa.ChunkedArray, option: str) -> np.ndarray:
    """Return a mask of the rows whose image id or source is one of `ids`."""
    wanted = pa.array(sorted(ids), pa.string())
    by_id, by_source = pc.is_in(image_id, value_set=wanted), pc.is_in(source, value_set=wanted)
    found = {*image_id.filter(by_id).to_pylist(), *source.filter(by_source).to_pylist()}
    if unknown := sorted(ids - found):
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise UsageError(
            f"{option} names {unknown[0]!r}{more}, which is neither an image_id nor a source of the audited rows: "
            f"correct or remove it"
        )
    return as_mask(pc.or_(by_id, by_source))
