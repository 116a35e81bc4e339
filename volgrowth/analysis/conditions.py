"""Scored rows that have no condition in an audit by classes or captions: how many, and what that means.

Such a row was measured without a condition. Its growth is that of another flow than the one of the other rows.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.audit.output.fragments import READERS
from volgrowth.audit.output.result import Audit
from volgrowth.records import Status
from volgrowth.storage.places import read_ahead

CONDITIONS_TOLD = {"class": "class", "caption": "tokens_cut"}
"""The column of scores that is null in a scored row without a condition, by the kind of conditions."""


def count_without(scores: pa.Table, config: Mapping[str, Any]) -> int:
    """Return how many scored rows have no condition; 0 in an audit without conditions.

    Args:
        scores: with the columns `status` and those of `CONDITIONS_TOLD`.
        config: the settings of the audit, as its manifest has them.
    """
    kind = _kind(config)
    if kind is None:
        return 0
    without = pc.is_null(scores[CONDITIONS_TOLD[kind]])
    return pc.sum(pc.and_(without, pc.equal(scores["status"], Status.OK.value))).as_py() or 0


def describe_conditions(audit: Audit, scored: int, without: int) -> dict[str, Any] | None:
    """Describe how many scored rows have a condition.

    Args:
        audit: its scores.
        scored: number of audited rows with a score.
        without: number of these without a condition.

    Returns:
        The `kind` of conditions and the `column` that was named for them; and of `audited` and `held_out` rows, None
        for no held-out ones, how many `rows` have a score and how many of these are `without` a condition. None in an
        audit without conditions, and where rows of an older version do not tell.
    """
    config, held_out = audit.frozen.config, audit.holdout_scores
    kind, held = _kind(config), None
    if held_out is not None:
        scored_held = pc.sum(pc.equal(held_out["status"], Status.OK.value)).as_py() or 0
        held = {"rows": scored_held, "without": count_without(held_out, config)}
    if kind is None or ((without or (held and held["without"])) and not _is_told(audit, CONDITIONS_TOLD[kind])):
        return None
    counted = {"audited": {"rows": scored, "without": without}, "held_out": held}
    return {"kind": kind, "column": config[f"{kind}_column"], **counted}


def _is_told(audit: Audit, column: str) -> bool:
    """Return whether all scores have a column, which is read as null where an older version did not write it."""
    names = (shard.name for shard in audit.frozen.shards)
    threads = 1 if audit.store.local else READERS
    return all(column in there.names for there in read_ahead(audit.store.read_schema, names, threads))


def warn_of_missing(conditions: dict[str, Any] | None) -> list[str]:
    """Warn of scored rows without a condition, by what `describe_conditions` returned."""
    if not conditions:
        return []
    named = (("scored", conditions["audited"]), ("scored held-out", conditions["held_out"]))
    return [
        f"{of['without']:,} of {of['rows']:,} {which} rows have no {conditions['kind']} in column "
        f"{conditions['column']}: they were measured without one."
        for which, of in named
        if of and of["without"]
    ]


def _kind(config: Mapping[str, Any]) -> str | None:
    return next((kind for kind in CONDITIONS_TOLD if config[f"{kind}_column"] is not None), None)
