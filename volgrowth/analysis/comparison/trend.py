"""Several audits in their order, such as of a model's checkpoints: what each found, and what was new.

Images are matched by their pixels. An image, with its copies and near duplicates, is new where none of its rows has
pixels that an earlier audit found, and gone where the audit before found it and this one finds none of its pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from volgrowth.analysis.calibration.error_rates import FDR
from volgrowth.analysis.findings import check_columns
from volgrowth.analysis.judging import JudgedAudit
from volgrowth.audit.output.result import FINDINGS_FILE, Audit
from volgrowth.errors import UsageError


@dataclass(frozen=True)
class TrendPoint:
    """What one of several audits found. Numbers are of distinct images, as in every audit.

    Attributes:
        output: the audit.
        model: name of its model.
        judged: images that could be flagged.
        memorized: images that are flagged at the rate.
        proven: images that samples of `verify` reproduced; None if none were drawn.
        found: images that are flagged or proven.
        new: found images that no earlier audit found.
        gone: images that the audit before found and this one does not; None in the first.
    """

    output: str
    model: str
    judged: int
    memorized: int
    proven: int | None
    found: int
    new: int
    gone: int | None


@dataclass(frozen=True)
class Trend:
    """Audits in their order, and what limits a comparison of their numbers."""

    checkpoints: tuple[TrendPoint, ...]
    fdr: float
    notes: tuple[str, ...]


def follow_audits(audits: Sequence[Audit], fdr: float = FDR) -> Trend:
    """Count what each of several finished audits found, in their order.

    Args:
        audits: two or more.
        fdr: false-discovery rate at which images are flagged.

    Raises:
        UsageError: fewer than two audits, or one of them twice, or the rate is out of range.
        OutputError: an older version wrote the findings of one.
    """
    names = [audit.store.url for audit in audits]
    if len(audits) < 2 or len(set(names)) < len(names):
        raise UsageError(
            f"trend needs two different audits or more, and got {', '.join(names) or 'none'}: name the outputs of the "
            "checkpoints in their order"
        )
    if not 0 < fdr < 1:
        raise UsageError(f"--fdr {fdr:g}: expected above 0 and below 1")
    checkpoints, seen = list[TrendPoint](), np.empty(0, np.uint64)
    before: _Found | None = None
    for audit in audits:
        found, counted = _found(audit, fdr)
        gone = None if before is None else before.images_without(found.content)
        proven = counted["proven"] if audit.summary.get("verification") else None
        new = found.images_without(seen)
        of = audit.store.url, audit.frozen.model.name, counted["judged"], counted["flagged"]
        checkpoints.append(TrendPoint(*of, proven, counted["found"], new, gone))
        seen, before = np.union1d(seen, found.content), found
    return Trend(tuple(checkpoints), fdr, tuple(_notes(audits)))


@dataclass(frozen=True)
class _Found:
    """Rows that an audit found: the cluster and the hash of the pixels of each, (k,)."""

    cluster: np.ndarray
    content: np.ndarray

    def images_without(self, content: np.ndarray) -> int:
        """Return the number of clusters none of whose rows has one of these hashes."""
        return len(np.setdiff1d(self.cluster, self.cluster[np.isin(self.content, content)]))


def _found(audit: Audit, fdr: float) -> tuple[_Found, dict[str, int]]:
    """Return the rows that an audit found, and the numbers of its images."""
    check_columns(audit.store.read_schema(FINDINGS_FILE), audit.store.url, "outside_range", "identical")
    rows, content = list[np.ndarray](), list[np.ndarray]()
    counted = dict.fromkeys(("judged", "flagged", "proven", "found"), 0)
    for part in JudgedAudit(audit, audit.summary.get("verification"), fdr).parts(scores=["content_hash"]):
        for name in counted:
            counted[name] += part.images(getattr(part, name))
        found = part.found & part.findings["content_hash"].is_valid().to_numpy()
        rows.append(part.findings["cluster"].to_numpy()[found])
        content.append(part.findings["content_hash"].fill_null(0).to_numpy()[found])
    return _Found(np.concatenate(rows), np.concatenate(content)), counted


def _notes(audits: Sequence[Audit]) -> list[str]:
    """Say which audits cannot be compared with the first one as they stand."""
    first, notes = audits[0].frozen, list[str]()
    for audit in audits:
        other, name = audit.frozen, audit.store.url
        same = {
            "data set": first.data.fingerprint == other.data.fingerprint,
            "held-out set": (first.holdout and first.holdout.fingerprint)
            == (other.holdout and other.holdout.fingerprint),
            "measure": first.config["measure"] == other.config["measure"],
        }
        if another := [what for what, equal in same.items() if not equal]:
            notes.append(
                f"{name} has another {' and another '.join(another)} than {audits[0].store.url}: their numbers differ "
                "for that reason too."
            )
        if audit.summary.get("detection") is None:
            notes.append(f"{name} was not calibrated: it could flag nothing.")
        elif not audit.summary.get("verification"):
            notes.append(
                f"{name} was not verified: `volgrowth verify` would tell how many images it really reproduces."
            )
    hashes = [audit.frozen.model.hash for audit in audits]
    if len(set(hashes)) < len(hashes):
        notes.append("Two of the audits are of one and the same model.")
    return notes
