"""What to do with each row of an audited data set: findings and a policy become a list.

Rows of one `cluster` are one picture, and what is decided about one of them is decided about all: a picture is flagged
where any of its rows is. The first of these that fits a row decides it:

1. it is on the allow-list: `keep`
2. it, or a row of its cluster, is opted out: `drop`
3. it is flagged. Action `drop` drops it. `dedupe` keeps the smallest row of its cluster, or the allowed ones instead,
   and drops the others. `downweight` gives each row of the cluster one over their number: one effective copy. What has
   no copies has none to take away: these two leave it to `review`
4. samples reproduced it and it is not flagged, or it was not judged (no score, or outside the range of the
   calibration): `review`
5. otherwise: `keep`

`review` changes nothing in an applied data set; it says that a person should look.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.calibration.error_rates import FDR
from volgrowth.audit.output.manifest import SCORES_FOLDER
from volgrowth.audit.output.result import Audit
from volgrowth.errors import OutputError, UsageError
from volgrowth.records import Status
from volgrowth.storage.store import Store


class Action(StrEnum):
    """What becomes of a row. Every row of the data set has exactly one."""

    KEEP = "keep"
    DROP = "drop"
    DOWNWEIGHT = "downweight"
    """stays, with a weight below one"""
    REVIEW = "review"
    """stays, and a person should look at it"""


def _field(name: str, type_: pa.DataType, meaning: str) -> pa.Field:
    return pa.field(name, type_, metadata={"meaning": meaning})


CURATION = pa.schema(
    [
        _field("row", pa.int64(), "position in the frozen order, unique"),
        _field("image_id", pa.string(), "as in findings"),
        _field("source", pa.string(), "as in scores"),
        _field("action", pa.string(), "keep, drop, downweight or review"),
        _field("weight", pa.float64(), "of the row in training: 1, or less where downweight, 0 where drop"),
        _field("reason", pa.string(), "why not simply keep"),
        _field("excess_growth", pa.float64(), "as in findings"),
        _field("p_value", pa.float64(), "as in findings"),
        _field("q_value", pa.float64(), "as in findings"),
        _field("cluster", pa.int64(), "as in findings"),
        _field("audit", pa.string(), "what the list is of: the first digits of the digest of the audit's plan"),
    ]
)


@dataclass(frozen=True)
class CurationPolicy:
    """What is flagged, and what is done about it.

    Attributes:
        by: `fdr` flags what has at most `limit` as q_value, `max_score` what has more than it as excess_growth, `top_k`
            the `limit` pictures highest in excess_growth, and those that are equal to the last of them.
        allow, opt_out: image ids or sources of rows.
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
    """The list of a finished audit, one row per image, in row order.

    Raises:
        UsageError: an allowed or opted-out id is of no row, or a row is both.
        OutputError: nothing was calibrated, so that the policy could flag nothing.
    """
    return decide_actions(audit.findings, thin_scores(audit, "source", "status"), policy, list_digest(audit))


def list_digest(audit: Audit) -> str:
    """What a list says it is of."""
    return audit.frozen.digest.removeprefix("sha256:")[:16]


def thin_scores(audit: Audit, *columns: str) -> pa.Table:
    """Some columns of the scores, in row order; fragments are read one at a time."""
    shards = [shard for shard in audit.frozen.shards if shard.folder == SCORES_FOLDER]
    names = list(columns)
    tables = [audit.store.read_table(shard.name).select(names).replace_schema_metadata() for shard in shards]
    return pa.concat_tables(tables)


def store_of(file: str) -> tuple[Store, str]:
    """The folder, and the name in it, of a path or URL of a file."""
    folder, _, name = file.rpartition("/")
    return Store(folder or ("/" if file.startswith("/") else ".")), name


def decide_actions(findings: pa.Table, scores: pa.Table, policy: CurationPolicy, audit: str) -> pa.Table:
    """The list, from findings and the columns `source` and `status` of the scores; raises as `make_list`."""
    names = scores["source"]
    allowed = _named(policy.allow, findings["image_id"], names, "--allow")
    opted_out = _named(policy.opt_out, findings["image_id"], names, "--opt-out")
    if (allowed & opted_out).any():
        row = int(np.argmax(allowed & opted_out))
        raise UsageError(f"row {row} ({findings['image_id'][row]}) is both in --allow and in --opt-out: remove one")
    rows = _Rows(findings, scores, policy)
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
    return pa.table([made[name] if name in made else findings[name] for name in CURATION.names], CURATION)


class _Rows:
    """What the rules look at, as arrays over all rows."""

    def __init__(self, findings: pa.Table, scores: pa.Table, policy: CurationPolicy):
        self.policy = policy
        self.outside = pc.fill_null(findings["outside_range"], False).to_numpy().astype(bool)
        self.status = scores["status"]
        self.scored = pc.equal(self.status, Status.OK.value).to_numpy().astype(bool)
        self.hits = pc.fill_null(findings["verified_hits"], 0).to_numpy()
        self.cluster = findings["cluster"].to_numpy()
        _, self.first, self.group, sizes = np.unique(
            self.cluster, return_index=True, return_inverse=True, return_counts=True
        )
        self.size = sizes[self.group]
        self.value = findings["q_value" if policy.by == "fdr" else "excess_growth"].to_numpy()
        score = -self.value if policy.by == "fdr" else self.value
        self.score = np.where(np.isfinite(score) & ~self.outside, score, -np.inf)
        order = np.lexsort((-np.arange(len(findings)), self.score, self.group))
        self.best = order[np.searchsorted(self.group[order], np.arange(len(sizes)), "right") - 1][self.group]
        self.threshold = self._threshold()
        self.flagged = self.score[self.best] >= self.threshold

    def _threshold(self) -> float:
        """The smallest score that flags."""
        limit, best = self.policy.limit, np.sort(self.score[self.best[self.first]])
        if self.policy.by == "top_k" and not limit:
            return np.inf
        judged = best[np.isfinite(best)]
        if not len(judged):
            raise OutputError(
                "no row of this audit has a calibrated score, so that nothing can be flagged: audit it with --holdout, "
                "or take --top-k 0 for a list of opt-outs alone"
            )
        if self.policy.by == "top_k":
            return judged[-min(int(limit), len(judged))]
        return -limit if self.policy.by == "fdr" else np.nextafter(limit, np.inf)

    def any_of_cluster(self, rows: np.ndarray) -> np.ndarray:
        """Whether a row's cluster has one of `rows`."""
        return np.bincount(self.group, rows)[self.group] > 0

    def rules(
        self, allowed: np.ndarray, opted_out: np.ndarray
    ) -> list[tuple[np.ndarray, Action, Callable[[int], str]]]:
        """All but the last, in their order: which rows fit, what is done, and why."""

        def departed(row: int) -> str:
            return "opted out" if opted_out[row] else f"an image of its cluster, {self.cluster[row]}, opted out"

        return [
            (allowed, Action.KEEP, lambda _: "on the allow-list"),
            (self.any_of_cluster(opted_out), Action.DROP, departed),
            *((self.flagged & fits, action, why) for fits, action, why in self._flagged_rules(allowed)),
            (
                self.any_of_cluster(self.hits > 0),
                Action.REVIEW,
                lambda _: "samples reproduced it, and it is not flagged",
            ),
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
        """Why a row is flagged, by itself or through its cluster."""
        if self.score[row] < self.threshold:
            return f"in the cluster of row {self.best[row]}: {self._why(int(self.best[row]))}"
        value, limit = self.value[row], self.policy.limit
        if self.policy.by == "fdr":
            return f"q_value {value:.3g} <= {limit:g}"
        if self.policy.by == "max_score":
            return f"excess_growth {value:.4g} > {limit:g}"
        return f"excess_growth {value:.4g}, among the {limit:g} highest"


def _named(ids: frozenset[str], image_id: pa.ChunkedArray, source: pa.ChunkedArray, option: str) -> np.ndarray:
    """(n,) the rows whose image id or source is one of `ids`."""
    wanted = pa.array(sorted(ids), pa.string())
    by_id, by_source = pc.is_in(image_id, value_set=wanted), pc.is_in(source, value_set=wanted)
    found = {*image_id.filter(by_id).to_pylist(), *source.filter(by_source).to_pylist()}
    if unknown := sorted(ids - found):
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise UsageError(
            f"{option} names {unknown[0]!r}{more}, which is neither an image_id nor a source of the audited rows: "
            f"correct or remove it"
        )
    return pc.or_(by_id, by_source).to_numpy().astype(bool)
