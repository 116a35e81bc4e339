"""The list of an audit, made in parts by a policy: what must be known of all rows first, and then an action for each.

The rules are those of `analysis.policy`. What is kept of all rows is what the policy flags, what samples hit, and what
people named; the rows themselves are read again for each pass, a shard at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.as_numpy import as_floats, as_mask
from volgrowth.analysis.calibration.false_bounds import CONFIDENCE, innocent_among
from volgrowth.analysis.judging import JudgedAudit, JudgedTables, Judgement, count_above_pictures
from volgrowth.analysis.policy import CURATION, Action, CurationPolicy, list_digest
from volgrowth.audit.output.result import Audit
from volgrowth.errors import OutputError, UsageError
from volgrowth.records import Status

Rule = tuple[np.ndarray, Action, Callable[[int], str]]

_FINDINGS = (
    *("row", "image_id", "excess_growth", "evidence", "false_bound", "p_value", "q_value", "cluster"),
    *("verified_hits", "outside_range"),
)
_SCORES = ("source", "status")


def make_list(audit: Audit, policy: CurationPolicy) -> pa.Table:
    """Make the list of a finished audit, all of it at once; see `Curation`."""
    return pa.concat_tables(
        Curation(JudgedAudit(audit, audit.summary.get("verification")), policy).tables(list_digest(audit))
    )


def decide_actions(
    findings: pa.Table,
    scores: pa.Table,
    policy: CurationPolicy,
    audit: str,
    verification: dict[str, Any] | None = None,
) -> pa.Table:
    """Make the list of an audit from tables of all its rows; raises as `Curation`.

    Args:
        findings: with the columns of `records.FINDINGS`.
        scores: with the columns `source` and `status`.
        policy: the rule.
        audit: name of the audit in the list.
        verification: part `verification` of the summary; None if no samples were drawn.
    """
    return pa.concat_tables(Curation(JudgedTables(findings, scores, verification), policy).tables(audit))


@dataclass
class _Pictures:
    """The flagged pictures, by their sorted clusters: arrays of one entry each.

    Attributes:
        cluster: name of the picture.
        score: highest score of its rows.
        row: the row with that score, of several the first.
        value, judged, proven: of that row.
        first: the smallest row.
        size: number of rows.
    """

    cluster: np.ndarray
    score: np.ndarray = field(init=False)
    row: np.ndarray = field(init=False)
    value: np.ndarray = field(init=False)
    judged: np.ndarray = field(init=False)
    proven: np.ndarray = field(init=False)
    first: np.ndarray = field(init=False)
    size: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.cluster)
        self.score, self.value = np.full(count, -np.inf), np.full(count, np.nan)
        self.row, self.first, self.size = (
            np.full(count, -1),
            np.full(count, np.iinfo(np.int64).max),
            np.zeros(count, int),
        )
        self.judged, self.proven = np.zeros(count, bool), np.zeros(count, bool)

    def add(self, part: "_Part") -> None:
        """Count the rows of a part, which follow those of earlier parts."""
        rows = np.flatnonzero(np.isin(part.cluster, self.cluster))
        at = np.searchsorted(self.cluster, part.cluster[rows])
        np.add.at(self.size, at, 1)
        np.minimum.at(self.first, at, part.row[rows])
        order = np.lexsort((rows, -part.score[rows], at))
        best = order[np.unique(at[order], return_index=True)[1]]
        better = best[(part.score[rows[best]] > self.score[at[best]]) | (self.row[at[best]] < 0)]
        into, of = at[better], rows[better]
        self.score[into], self.row[into], self.value[into] = part.score[of], part.row[of], part.value[of]
        self.judged[into], self.proven[into] = part.judged[of], part.proven[of]


class _Part:
    """Arrays over the rows of a part that a policy looks at."""

    def __init__(self, known: Judgement, policy: CurationPolicy, proven: np.ndarray, ranking: str):
        findings = known.findings
        self.findings, self.judged = findings, known.judged
        self.row, self.cluster = findings["row"].to_numpy(), findings["cluster"].to_numpy()
        self.proven = np.isin(self.row, proven)
        self.value = as_floats(findings["q_value" if policy.by == "fdr" else ranking])
        score = -self.value if policy.by == "fdr" else self.value
        self.score = np.where(np.isfinite(score) & known.judged, score, -np.inf)
        if policy.by == "fdr":
            self.score[self.proven] = np.inf
        self.hits = pc.fill_null(findings["verified_hits"], 0).to_numpy()
        self.scored = as_mask(pc.equal(findings["status"], Status.OK.value))
        self.outside = as_mask(findings["outside_range"])


class _Named:
    """Rows whose image id or source people named, and the clusters of these rows."""

    def __init__(self, ids: frozenset[str], option: str):
        self.ids, self.option = ids, option
        self.wanted = pa.array(sorted(ids), pa.string())
        self._found, self._rows, self._clusters = set[str](), list[np.ndarray](), list[np.ndarray]()

    def mask(self, findings: pa.Table) -> np.ndarray:
        """Return a mask of the named rows in a part."""
        if not self.ids:
            return np.zeros(len(findings), bool)
        by = (pc.is_in(findings[name], value_set=self.wanted) for name in ("image_id", "source"))
        return as_mask(pc.or_(*by))

    def look(self, part: _Part) -> None:
        """Take note of the named rows in a part."""
        mask = self.mask(part.findings)
        if mask.any():
            some = part.findings.filter(pa.array(mask))
            self._found |= {*some["image_id"].to_pylist(), *some["source"].to_pylist()} & self.ids
            self._rows.append(part.row[mask])
            self._clusters.append(np.unique(part.cluster[mask]))

    def refuse_unknown(self) -> None:
        """Raise a UsageError if a name is neither an image id nor a source of any row."""
        if unknown := sorted(self.ids - self._found):
            more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
            raise UsageError(
                f"{self.option} names {unknown[0]!r}{more}, which is neither an image_id nor a source of the audited "
                f"rows: correct or remove it"
            )

    @property
    def rows(self) -> np.ndarray:
        return _joined(self._rows)

    @property
    def clusters(self) -> np.ndarray:
        return np.unique(_joined(self._clusters))


class Curation:
    """A list that a policy makes of an audit; its rows are decided in parts.

    Args:
        rows: the audit.
        policy: the rule.

    Raises:
        UsageError: no row has an allowed or opted-out id, or a row is both allowed and opted out.
        OutputError: no row was calibrated, so that the policy could flag none.
    """

    def __init__(self, rows: JudgedAudit | JudgedTables, policy: CurationPolicy):
        self.rows, self.policy, self.ranking = rows, policy, rows.pictures.ranking
        self.name = "q_value" if policy.by == "fdr" else self.ranking
        self.allowed, self.opted_out = _Named(policy.allow, "--allow"), _Named(policy.opt_out, "--opt-out")
        highest, hits, judged = _Highest(int(policy.limit) if policy.by == "top_k" else 0), list[np.ndarray](), False
        for part in self._parts():
            self.allowed.look(part)
            self.opted_out.look(part)
            hits.append(np.unique(part.cluster[part.hits > 0]))
            there = part.score > -np.inf
            judged = judged or bool(there.any())
            highest.add(part.cluster[there], part.score[there])
        self._refuse_names()
        self.hit = np.unique(_joined(hits))
        self.threshold = self._threshold(judged, highest)
        flagged = (np.unique(part.cluster[part.score >= self.threshold]) for part in self._parts())
        self.flagged = _Pictures(np.unique(_joined(list(flagged))))
        for part in self._parts() if len(self.flagged.cluster) else ():
            self.flagged.add(part)
        self.kept = self.flagged.first[~np.isin(self.flagged.cluster, self.allowed.clusters)]

    def _parts(self) -> Iterator[_Part]:
        proven = self.rows.pictures.proven_images
        for part in self.rows.parts(findings=_FINDINGS, scores=_SCORES):
            yield _Part(part, self.policy, proven, self.ranking)

    def _refuse_names(self) -> None:
        self.allowed.refuse_unknown()
        self.opted_out.refuse_unknown()
        both = np.intersect1d(self.allowed.rows, self.opted_out.rows)
        if len(both):
            ids = (
                part.findings["image_id"][int(np.argmax(part.row == both[0]))]
                for part in self._parts()
                if both[0] in part.row
            )
            raise UsageError(f"row {both[0]} ({next(ids)}) is both in --allow and in --opt-out: remove one")

    def _threshold(self, judged: bool, highest: "_Highest") -> float:
        """Return the smallest score that is flagged."""
        limit = self.policy.limit
        if self.policy.by == "top_k" and not limit:
            return np.inf
        if not judged:
            raise OutputError(
                "no row of this audit has a calibrated score, so that nothing can be flagged: audit it with --holdout, "
                "or take --top-k 0 for a list of opt-outs alone"
            )
        if self.policy.by == "top_k":
            return float(highest.score.min())
        return -limit if self.policy.by == "fdr" else float(np.nextafter(limit, np.inf))

    def bound_innocent(self, detection: dict[str, Any] | None) -> str | None:
        """Say how many of the flagged pictures are innocent, at most; None for a policy by the rate.

        The bound holds for every cut at once (`false_bounds`), so also for one chosen after looking at the images.

        Args:
            detection: part `detection` of the summary.
        """
        if self.policy.by == "fdr":
            return None
        if not detection or detection["null"] != "held-out":
            return "how many of these are innocent cannot be bounded without held-out images: audit with --holdout"
        if "trials" not in detection:
            return "how many of these are innocent was not bounded by the version that wrote this audit: audit again"
        held = detection["calibration_rows"]
        above = count_above_pictures(self.rows.parts(findings=["p_value_conformal"]), held, self.flagged.cluster)
        most, confidence = innocent_among(above, held, detection["trials"]), f"with {CONFIDENCE:.0%} confidence"
        if not len(above):
            return None
        if most == len(above):
            return f"of these {most:,} images all may be innocent: {held:,} held-out images cannot tell {confidence}"
        return f"of these {len(above):,} images at most {most:,} are innocent, {confidence} for every cut at once"

    def tables(self, audit: str) -> Iterator[pa.Table]:
        """Yield the list, a shard's rows at a time, with the columns of `CURATION`; `audit` is the audit's name."""
        return (self._decided(part, audit) for part in self._parts())

    def _decided(self, part: _Part, audit: str) -> pa.Table:
        findings = part.findings
        actions, reasons = np.full(len(findings), Action.KEEP.value, object), np.full(len(findings), "", object)
        left, of = np.ones(len(findings), bool), self._picture(part)
        for fits, action, why in self._rules(part, of):
            chosen = np.flatnonzero(fits & left)
            actions[chosen] = action.value
            reasons[chosen] = [why(row) for row in chosen.tolist()]
            left[chosen] = False
        size = np.append(self.flagged.size, 1)[of]
        weight = np.select([actions == Action.DROP, actions == Action.DOWNWEIGHT], [0.0, 1 / size], 1.0)
        made = {
            "action": pa.array(actions, pa.string()),
            "weight": pa.array(weight),
            "reason": pa.array(reasons, pa.string()),
            "audit": pa.repeat(pa.scalar(audit), len(findings)),
        }
        return pa.table([made[name] if name in made else findings[name] for name in CURATION.names], CURATION)

    def _picture(self, part: _Part) -> np.ndarray:
        """Return the number of each row's flagged picture, (rows,); -1 for a row of none."""
        if not len(self.flagged.cluster):
            return np.full(len(part.row), -1)
        at = np.searchsorted(self.flagged.cluster, part.cluster)
        at[at == len(self.flagged.cluster)] = 0
        return np.where(self.flagged.cluster[at] == part.cluster, at, -1)

    def _rules(self, part: _Part, of: np.ndarray) -> list[Rule]:
        """Return the rules in their order, without the last: rows that fit, action, and reason for a row."""
        opted_out, allowed, status = (
            self.opted_out.mask(part.findings),
            self.allowed.mask(part.findings),
            part.findings["status"],
        )

        def departed(row: int) -> str:
            return "opted out" if opted_out[row] else f"an image of its cluster, {part.cluster[row]}, opted out"

        flagged = of >= 0
        return [
            (allowed, Action.KEEP, lambda _: "on the allow-list"),
            (np.isin(part.cluster, self.opted_out.clusters), Action.DROP, departed),
            *((flagged & fits, action, why) for fits, action, why in self._flagged_rules(part, of)),
            (
                np.isin(part.cluster, self.rows.pictures.proven),
                Action.REVIEW,
                lambda _: "samples reproduced it, and it is not flagged",
            ),
            (np.isin(part.cluster, self.hit), Action.REVIEW, lambda _: "samples hit it, too few to prove a copy"),
            (~part.scored, Action.REVIEW, lambda row: f"not judged: it has no score ({status[row]})"),
            (part.outside, Action.REVIEW, lambda _: "not judged: outside the range of the calibration"),
        ]

    def _flagged_rules(self, part: _Part, of: np.ndarray) -> list[Rule]:
        everything, pictures = np.ones(len(of), bool), self.flagged

        def why(row: int) -> str:
            value, judged, proven = part.value[row], part.judged[row], part.proven[row]
            if part.score[row] >= self.threshold:
                return self._why(value, judged, proven)
            best = of[row]
            reason = self._why(pictures.value[best], pictures.judged[best], pictures.proven[best])
            return f"in the cluster of row {pictures.row[best]}: {reason}"

        if self.policy.action == "drop":
            return [(everything, Action.DROP, why)]

        def single(row: int) -> str:
            return f"{why(row)}; it has no copies to take away"

        def one_of(row: int) -> str:
            return f"{why(row)}; one of {pictures.size[of[row]]} in its cluster"

        rules: list[Rule] = [(np.append(pictures.size, 0)[of] == 1, Action.REVIEW, single)]
        if self.policy.action == "downweight":
            return [*rules, (everything, Action.DOWNWEIGHT, one_of)]
        stays = np.isin(part.row, self.kept)
        kept: Rule = (stays, Action.KEEP, lambda row: f"{one_of(row)}, and the one that stays")
        return [*rules, kept, (everything, Action.DROP, one_of)]

    def _why(self, value: float, judged: bool, proven: bool) -> str:
        """Say why a row is flagged by itself."""
        limit = self.policy.limit
        if self.policy.by == "fdr":
            reasons = [f"q_value {value:.3g} <= {limit:g}"] if value <= limit and judged else []
            return " and ".join([*reasons, *(["samples reproduced it"] if proven else [])])
        if self.policy.by == "max_score":
            return f"{self.name} {value:.4g} > {limit:g}"
        return f"{self.name} {value:.4g}, among the {int(limit)} highest"


class _Highest:
    """The pictures of highest score, so many of them; each counts once, by the highest of its rows."""

    def __init__(self, count: int):
        self.count, self.cluster, self.score = count, np.empty(0, np.int64), np.empty(0)

    def add(self, cluster: np.ndarray, score: np.ndarray) -> None:
        """Look at further rows, (n,) each."""
        if not self.count:
            return
        cluster, score = np.concatenate([self.cluster, cluster]), np.concatenate([self.score, score])
        order = np.lexsort((-score, cluster))
        first = order[np.unique(cluster[order], return_index=True)[1]]
        first = first[np.argsort(-score[first], kind="stable")][: self.count]
        self.cluster, self.score = cluster[first], score[first]


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *arrays])
