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

from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import Literal

import pyarrow as pa

from volgrowth.analysis.calibration.error_rates import FDR
from volgrowth.audit.output.manifest import MANIFEST
from volgrowth.audit.output.result import (
    FINDINGS_FILE,
    HOLDOUT_FINDINGS_FILE,
    REDACTED_FILE,
    REPORT_FILE,
    SUMMARY_FILE,
    Audit,
)
from volgrowth.errors import UsageError
from volgrowth.records import column
from volgrowth.storage.store import Store

OWN_FILES = (MANIFEST, FINDINGS_FILE, HOLDOUT_FINDINGS_FILE, SUMMARY_FILE, REPORT_FILE, REDACTED_FILE)
"""Files of an audit that no other command may write under a name that the user gives."""


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
        limit: see `by`; a whole number for `top_k`.
        action: `drop`, `dedupe` (keep one row of each group of near duplicates) or `downweight` (give the rows of a
            group together the weight of one).
        allow: image ids or sources of rows that are always kept.
        opt_out: image ids or sources of rows that are always dropped.

    Raises:
        UsageError: `by`, `limit` or `action` is none of these.
    """

    by: Literal["fdr", "top_k", "max_score"] = "fdr"
    limit: float = FDR
    action: Literal["drop", "dedupe", "downweight"] = "drop"
    allow: frozenset[str] = frozenset()
    opt_out: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        fits = {
            "fdr": (0 < self.limit < 1, "above 0 and below 1"),
            "top_k": (self.limit >= 0 and self.limit % 1 == 0, "a whole number, 0 or more"),
            "max_score": (isfinite(self.limit), "a number"),
        }
        if self.by not in fits:
            raise UsageError(f"by {self.by!r} is no rule of a curation policy: expected fdr, top_k or max_score")
        good, expected = fits[self.by]
        if not good:
            raise UsageError(f"--{self.by.replace('_', '-')} {self.limit:g}: expected {expected}")
        if self.action not in ("drop", "dedupe", "downweight"):
            raise UsageError(f"--action {self.action}: expected drop, dedupe or downweight")


def list_digest(audit: Audit) -> str:
    """Return the name of an audit in its lists: the first digits of its manifest's digest."""
    return audit.frozen.list_digest


def store_of(file: str) -> tuple[Store, str]:
    """Return the `Store` of a file's folder, and the file's name in it."""
    folder, _, name = file.rpartition("/")
    return Store(folder or ("/" if file.startswith("/") else ".")), name


def new_file_of(file: str) -> tuple[Store, str]:
    """Return the same for a file that is to be written.

    Raises:
        UsageError: it is one that an audit wrote for itself, which would be lost.
    """
    store, name = store_of(file)
    if name in OWN_FILES and store.exists(MANIFEST):
        raise UsageError(f"{file} is a file of the audit in {store.url}, which needs it: give another name")
    return store, name
