"""Several audits in their order, such as of a model's checkpoints: what each found, and what was new.

Images are matched by their pixels. An image, with its copies and near duplicates, is new where none of its rows has
pixels that an earlier audit found, and gone where the audit before found it and this one finds none of its pixels.
Found images are also counted by source and by class, which need no matching.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from volgrowth.analysis.breakdown import LISTED, FoundCounts, class_of, source_of
from volgrowth.analysis.calibration.error_rates import FDR
from volgrowth.analysis.comparison.circumstances import sample_note, setting_notes
from volgrowth.analysis.comparison.evidence_rules import different_evidence
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
class TrendGroup:
    """Images of one source or class: their number in the last audit that has some, and how many each audit found.

    Attributes:
        name: of the source or class; empty for images without one.
        images: distinct images.
        found: images that are flagged or proven, by audit; None where the audit knows none of the group.
    """

    name: str
    images: int
    found: tuple[int | None, ...]


@dataclass(frozen=True)
class TrendBreakdown:
    """Found images by source or by class: the groups of most found images, their number in all, and sums over all."""

    listed: tuple[TrendGroup, ...]
    groups: int
    all: TrendGroup


@dataclass(frozen=True)
class Trend:
    """Audits in their order, and what limits a comparison of their numbers.

    Attributes:
        checkpoints: what each audit found.
        fdr: false-discovery rate at which images are flagged.
        notes: sentences about what cannot be compared.
        by_source: found images by source.
        by_class: found images by class; None if no audit has a class column.
    """

    checkpoints: tuple[TrendPoint, ...]
    fdr: float
    notes: tuple[str, ...]
    by_source: TrendBreakdown | None = None
    by_class: TrendBreakdown | None = None


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
    places = {
        os.path.realpath(name) if audit.store.local else name.rstrip("/")
        for name, audit in zip(names, audits, strict=True)
    }
    if len(audits) < 2 or len(places) < len(names):
        raise UsageError(
            f"trend needs two different audits or more, and got {', '.join(names) or 'none'}: name the outputs of the "
            "checkpoints in their order"
        )
    if not 0 < fdr < 1:
        raise UsageError(f"--fdr {fdr:g}: expected above 0 and below 1")
    checkpoints, seen = list[TrendPoint](), np.empty(0, np.uint64)
    before: _Found | None = None
    sources, classes = list[FoundCounts | None](), list[FoundCounts | None]()
    for audit in audits:
        sources.append(FoundCounts(source_of(audit.frozen.data.kind)))
        classes.append(FoundCounts(class_of) if audit.frozen.config["class_column"] else None)
        found, counted = _found(audit, fdr, [each for each in (sources[-1], classes[-1]) if each])
        gone = None if before is None else before.images_without(found.content)
        proven = counted["proven"] if audit.summary.get("verification") else None
        new = found.images_without(seen)
        of = audit.store.url, audit.frozen.model.name, counted["judged"], counted["flagged"]
        checkpoints.append(TrendPoint(*of, proven, counted["found"], new, gone))
        seen, before = np.union1d(seen, found.content), found
    return Trend(tuple(checkpoints), fdr, tuple(_notes(audits)), _breakdown(sources), _breakdown(classes))


def _breakdown(counted: Sequence[FoundCounts | None]) -> TrendBreakdown | None:
    """Bring the counts of several audits together; None if no audit has any.

    Groups are listed in the order of what the last audit found of them, then the one before, and so on.
    """
    known = [each.counts if each else None for each in counted]
    names = {name for counts in known if counts for name in counts["images"]}
    if not names:
        return None

    def group(name: str) -> TrendGroup:
        images = next(counts["images"][name] for counts in reversed(known) if counts and counts["images"][name])
        found = (counts["found"][name] if counts and counts["images"][name] else None for counts in known)
        return TrendGroup(name, images, tuple(found))

    ordered = sorted(
        map(group, names), key=lambda one: ([-(number or 0) for number in reversed(one.found)], -one.images, one.name)
    )
    images = next(counts["images"].total() for counts in reversed(known) if counts)
    found = tuple(counts["found"].total() if counts else None for counts in known)
    return TrendBreakdown(tuple(ordered[:LISTED]), len(ordered), TrendGroup("", images, found))


@dataclass(frozen=True)
class _Found:
    """Rows that an audit found: the cluster and the hash of the pixels of each, (k,)."""

    cluster: np.ndarray
    content: np.ndarray

    def images_without(self, content: np.ndarray) -> int:
        """Return the number of clusters none of whose rows has one of these hashes."""
        return len(np.setdiff1d(self.cluster, self.cluster[np.isin(self.content, content)]))


def _found(audit: Audit, fdr: float, breakdowns: Sequence[FoundCounts]) -> tuple[_Found, dict[str, int]]:
    """Return the rows that an audit found, and the numbers of its images; count them in the breakdowns too."""
    check_columns(audit.store.read_schema(FINDINGS_FILE), audit.store.url, "outside_range", "identical")
    rows, content = list[np.ndarray](), list[np.ndarray]()
    counted = dict.fromkeys(("judged", "flagged", "proven", "found"), 0)
    for part in JudgedAudit(audit, audit.summary.get("verification"), fdr).parts(
        scores=["content_hash", "source", "class"]
    ):
        for breakdown in breakdowns:
            breakdown.add(part)
        for name in counted:
            counted[name] += part.images(getattr(part, name))
        found = part.found & part.findings["content_hash"].is_valid().to_numpy()
        rows.append(part.findings["cluster"].to_numpy()[found])
        content.append(part.findings["content_hash"].fill_null(0).to_numpy()[found])
    return _Found(np.concatenate(rows), np.concatenate(content)), counted


def _notes(audits: Sequence[Audit]) -> list[str]:
    """Say which audits cannot be compared with the first one as they stand."""
    first, notes = audits[0].frozen, list[str]()
    judged = next((audit for audit in audits if audit.summary.get("calibration")), audits[0])
    verified = next((audit for audit in audits if audit.summary.get("verification")), audits[0])
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
        notes += setting_notes(audits[0], audit, (audits[0].store.url, name))
        if different_evidence(judged, audit):
            notes.append(
                f"{name} flags by other evidence than {judged.store.url}: an image may be flagged in one of them for "
                "that reason alone."
            )
        if audit.summary.get("detection") is None:
            notes.append(f"{name} was not calibrated: it could flag nothing.")
        elif not audit.summary.get("verification"):
            notes.append(
                f"{name} was not verified: `volgrowth verify` would tell how many images it really reproduces."
            )
        elif said := sample_note(verified, audit, (verified.store.url, name)):
            notes.append(said)
    hashes = [audit.frozen.model.hash for audit in audits]
    if len(set(hashes)) < len(hashes):
        notes.append("Two of the audits are of one and the same model.")
    return notes
