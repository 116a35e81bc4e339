"""Families whose copies were altered, member by member: does evidence find the family whatever member is audited?

Every distinct form of a family is a row, as in an audit. A sample that hits a family counts for the
form that it is nearest to.
"""

from typing import Any

import numpy as np

from jobs.benchmark.detection.all_forms import Forms, audit_forms, form_hits
from jobs.benchmark.detection.subjects import Subject
from jobs.benchmark.truth.alterations import family_kinds
from volgrowth.analysis.judging import is_flagged


def member_rows(subject: Subject) -> list[dict[str, Any]]:
    """Return one row of the page for each kind of alteration in a case; none if nothing is altered there.

    Flags are means over the draws of the noise that are measured; without any they are missing.
    """
    setup = subject.trained.setup
    if not setup.altered:
        return []
    forms = Forms.of(subject.case)
    draws = [is_flagged(found["q_value"]) for found in audit_forms(subject, forms)]
    flagged = np.mean(draws, 0) if draws else np.full(len(forms.rows), np.nan)
    hits, kinds = form_hits(subject, forms), family_kinds(subject.case, setup.altered)
    return [
        {"case": setup.name, "seed": subject.trained.seed, "copies": kind}
        | _of_kind(subject, forms, kinds == kind, flagged, hits)
        for kind in dict.fromkeys(setup.altered)
    ]


def _of_kind(
    subject: Subject, forms: Forms, of_kind: np.ndarray, flagged: np.ndarray, hits: np.ndarray
) -> dict[str, Any]:
    """Return the row of one kind.

    Args:
        subject: the case.
        forms: its forms.
        of_kind: the families of this kind, (families,) bool.
        flagged: in which share of the draws each form is flagged, (forms,).
        hits: samples nearest to each form, (forms,).
    """
    reproduced = of_kind & subject.positive
    itself = np.isin(forms.rows, subject.case.first)
    mine = reproduced[forms.family]
    total = hits[mine].sum()
    any_member = forms.strongest(np.nan_to_num(flagged), len(of_kind))[reproduced]
    learnt = [int((hits[forms.family == family] > 0).sum()) for family in np.flatnonzero(reproduced)]
    return {
        "families": int(of_kind.sum()),
        "reproduced": int(reproduced.sum()),
        "hits nearest to the image itself, %": _percent(hits[mine & itself].sum() / total) if total else None,
        "forms that come out, median": float(np.median(learnt)) if learnt else None,
        "flagged: the image itself, %": _percent(_mean(flagged[mine & itself])),
        "a member, %": _percent(_mean(flagged[mine])),
        "any of its members, %": _percent(_mean(any_member)) if not np.isnan(flagged).any() else None,
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else np.nan


def _percent(share: float) -> str | None:
    return None if np.isnan(share) else f"{100 * share:.0f}"
