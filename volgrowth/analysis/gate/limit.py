"""The decision of the gate: whether an audit found more memorized images than are allowed, or cannot tell.

The gate counts distinct images, as the error rate does. It compares the share found / judged with the share that is
allowed; `analysis.judging` says what is found. If that share is larger, the gate fails. Otherwise it passes only if it
would have seen more: each reason why it might not have is a doubt, and with a doubt the gate cannot tell.
"""

from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any

import pyarrow as pa

from volgrowth.analysis.calibration.error_rates import fewest_flags, rows_needed
from volgrowth.analysis.caveats import gate_caveats, loss_unbounded, of_evidence, outdated_proof
from volgrowth.analysis.findings import check_columns
from volgrowth.analysis.judging import JudgedAudit
from volgrowth.analysis.verification.proof import samples_needed
from volgrowth.audit.output.result import FINDINGS_FILE, Audit
from volgrowth.errors import UsageError

LISTED = 20
"""The most images that are named."""


@dataclass(frozen=True)
class Gate:
    """The result of a gate. Counts are of distinct images unless they say rows.

    Attributes:
        name: URL of the audit.
        data: name of the data set.
        model: name of the model.
        fdr: false-discovery rate at which images are flagged.
        max_flagged: largest share of the judged images that may be found.
        flagged: number of images that are flagged.
        proven: number of images that samples reproduced, flagged or not.
        found: number of images that are flagged or proven.
        judged: number of images that are judged or proven.
        rows: number of rows of the data set.
        found_rows: number of rows of found images.
        unjudged_rows: number of rows that are neither judged nor proven.
        images: the `LISTED` most certain of the found images: row, image_id, evidence, q_value, verified_hits and
            copies of each.
        doubts: why more memorized images than allowed could be there unseen, and what would do, in sentences.
        caveats: what else changes the meaning of the result, in sentences.
    """

    name: str
    data: str
    model: str
    fdr: float
    max_flagged: float
    flagged: int
    proven: int
    found: int
    judged: int
    rows: int
    found_rows: int
    unjudged_rows: int
    images: tuple[dict[str, Any], ...]
    doubts: tuple[str, ...]
    caveats: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share of the judged images that is found; 0 if none is judged."""
        return self.found / max(self.judged, 1)

    @property
    def exceeded(self) -> bool:
        """True if a larger share is found than is allowed."""
        return _exceeds(self.found, self.judged, self.max_flagged)

    @property
    def decided(self) -> bool:
        """True if the gate can tell: more than allowed is found, or more would have been seen."""
        return self.exceeded or not self.doubts

    @property
    def passed(self) -> bool:
        """True if no larger share is found than is allowed, and a larger one would have been seen."""
        return self.decided and not self.exceeded

    @property
    def sentence(self) -> str:
        """The result in one sentence, without a full stop."""
        kinds = f"flagged at a false-discovery rate of {self.fdr:.3g}"
        if self.proven:
            kinds += f" ({self.flagged:,}) or reproduced by samples ({self.proven:,})"
        found = f"{self.found:,} of {self.judged:,} distinct images ({self.share:.3%}) are {kinds}"
        if self.exceeded:
            return f"{found}: more than the {self.max_flagged:.3%} allowed"
        if self.passed:
            return f"{found}: within the {self.max_flagged:.3%} allowed"
        return f"{found}, and it cannot be told if more than the {self.max_flagged:.3%} allowed are memorized"


def check_limit(audit: Audit, fdr: float, max_flagged: float) -> Gate:
    """Compare the share of found images of a finished audit with the share that is allowed.

    Args:
        audit: finished.
        fdr: false-discovery rate at which images are flagged, in (0, 1).
        max_flagged: largest allowed share of found images among the judged ones, in [0, 1].

    Raises:
        UsageError: `fdr` or `max_flagged` is out of range.
        OutputError: an older version wrote the findings.
    """
    if not 0 < fdr < 1:
        raise UsageError(f"--fdr {fdr:g}: expected above 0 and below 1")
    if not 0 <= max_flagged <= 1:
        raise UsageError(f"--max-flagged {max_flagged:g}: expected a share, from 0 to 1")
    check_columns(audit.store.read_schema(FINDINGS_FILE), audit.store.url, "identical", "outside_range")
    counted = _count(JudgedAudit(audit, audit.summary.get("verification"), fdr))
    exceeded = _exceeds(counted.found, counted.judged, max_flagged)
    return Gate(
        name=audit.store.url,
        data=audit.frozen.data.name,
        model=audit.frozen.model.name,
        fdr=fdr,
        max_flagged=max_flagged,
        flagged=counted.flagged,
        proven=counted.proven,
        found=counted.found,
        judged=counted.judged,
        rows=audit.frozen.data.rows,
        found_rows=counted.found_rows,
        unjudged_rows=counted.unjudged_rows,
        images=counted.images,
        doubts=() if exceeded else tuple(_doubts(audit, counted, fdr, max_flagged)),
        caveats=tuple(gate_caveats(audit.summary, exceeded)),
    )


def _exceeds(some: int, whole: int, share: float) -> bool:
    """Say whether some images of a whole are a larger share of it.

    It divides: 29 / 100 is the number 0.29 to the bit, and 0.29 * 100 is less than 29.
    """
    return some / max(whole, 1) > share


@dataclass
class _Counted:
    """Numbers of images of an audit, and of rows where the name says so; `images` are the most certain found ones."""

    tested: int = 0
    judged: int = 0
    flagged: int = 0
    proven: int = 0
    found: int = 0
    unjudged: int = 0
    outside: int = 0
    found_rows: int = 0
    unjudged_rows: int = 0
    images: tuple[dict[str, Any], ...] = ()


def _count(judged: JudgedAudit) -> _Counted:
    """Count the images of an audit, a shard's rows at a time."""
    counted, ranking = _Counted(), judged.pictures.ranking
    columns = ["row", "image_id", ranking, "q_value", "verified_hits", "copies"]
    certain: list[pa.Table] = []
    for part in judged.parts(findings=columns):
        counted.tested += part.images(part.tested)
        counted.judged += part.images(part.judged | part.proven)
        counted.flagged += part.images(part.flagged)
        counted.proven += part.images(part.proven)
        counted.found += part.images(part.found)
        counted.unjudged += part.images(part.unjudged)
        counted.outside += part.images(part.tested & ~part.judged)
        counted.found_rows += int(part.found.sum())
        counted.unjudged_rows += int(part.unjudged.sum())
        found = part.findings.filter(pa.array(part.found & part.first)).select(columns)
        order = [("q_value", "ascending"), (ranking, "descending"), ("row", "ascending")]
        certain = [pa.concat_tables([*certain, found]).sort_by(order).slice(0, LISTED)]
    for table in certain:
        names = ["evidence" if name == ranking else name for name in columns]
        counted.images = tuple(table.rename_columns(names).to_pylist())
    return counted


def _doubts(audit: Audit, known: _Counted, fdr: float, max_flagged: float) -> list[str]:
    """Say why more memorized images than allowed may be there unseen, and what would do."""
    judged = known.judged
    allowed = floor(max_flagged * judged + 1e-9)
    if not judged:
        return ["No image could be judged: audit again with --holdout."]
    if allowed >= judged:
        return []
    detection = audit.summary["detection"] or {}
    if detection.get("null") != "held-out":
        doubts = ["Without held-out images the rate is an assumption: audit again with --holdout."]
    else:
        doubts = _resolution(detection, known.tested, judged, allowed, fdr)
    doubts += _screened(audit.summary, known, allowed, fdr)
    if outdated := outdated_proof(audit.summary):
        doubts.append(outdated)
    doubts += _unjudged(audit, known, judged, max_flagged)
    proof = audit.summary.get("verification") or {"samples": 0}
    if doubts and proof["samples"] < samples_needed():
        doubts.append(f"`volgrowth verify` with {samples_needed():,} samples could prove that there are more.")
    return doubts


def _resolution(detection: dict[str, Any], tests: int, judged: int, allowed: int, fdr: float) -> list[str]:
    """Doubt if one memorized image more than is `allowed` could not be flagged."""
    held = detection["calibration_rows"]
    smallest = detection.get("smallest_p_value") or 1 / (1 + held)  # a version without tails did not write it
    fewest = fewest_flags(tests, smallest, fdr)
    if fewest <= allowed + 1:
        return []
    ones = f"memorized ones{of_evidence(detection)}"
    fixes = [f"hold out {rows_needed(tests, allowed + 1, fdr):,} images"]
    if fewest <= judged:
        fixes.append(f"check with --max-flagged {_rounded_up((fewest - 1) / judged)}")
    if (rate := tests * smallest / (allowed + 1)) < 0.5:
        fixes.append(f"with --fdr {_rounded_up(rate)}")
    return [
        f"With {held:,} held-out images fewer than {fewest:,} {ones} cannot be flagged at --fdr {fdr:g}, and "
        f"{allowed:,} are allowed: {', or '.join(fixes)}."
    ]


def _rounded_up(share: float) -> str:
    """Write a share with three figures, none of them rounded down."""
    digits = 2 - floor(log10(share))
    return f"{ceil(share * 10**digits) / 10**digits:.{digits}f}".rstrip("0")


def _screened(summary: dict[str, Any], known: _Counted, allowed: int, fdr: float) -> list[str]:
    """Doubt if the flags that a cascade's screen may have lost could exceed the limit."""
    if unbounded := loss_unbounded(summary, fdr):
        return [unbounded]
    lost = (summary.get("cascade") or {}).get("flags_lost_at_most") or 0
    if known.found + lost <= allowed:
        return []
    return [
        f"The cascade's screen may have lost up to {lost:,} flags: audit with a larger --set screen_sample, or without "
        f"--cascade."
    ]


def _unjudged(audit: Audit, known: _Counted, judged: int, max_flagged: float) -> list[str]:
    """Doubt if more images are unjudged than rows may fail, and their number could exceed the limit."""
    unjudged = known.unjudged
    tolerated = (audit.summary.get("run") or {}).get("max_failed", 0.01)
    worst, images = known.found + unjudged, judged + unjudged
    if not (_exceeds(unjudged, images, tolerated) and _exceeds(worst, images, max_flagged)):
        return []
    outside = known.outside
    fixes = [
        *(["score them by `volgrowth audit ... --retry-failed`"] if unjudged > outside else []),
        *(["hold out images as simple and as complex as the audited ones"] if outside else []),
    ]
    return [
        f"{unjudged:,} of {images:,} distinct images are not judged ({unjudged - outside:,} without a "
        f"score, {outside:,} outside the calibration's range): {' and '.join(fixes)}."
    ]
