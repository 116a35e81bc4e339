"""How many copies it takes: what samples reproduce, and what an audit flags, by the number of copies of an image."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from jobs.benchmark.detection.audited_presets import DRAWS, audit_case
from jobs.benchmark.detection.subjects import NotMeasuredError, Subject
from volgrowth.analysis.judging import is_flagged
from volgrowth.config import ScreenMeasure


def exposure_rows(subject: Subject) -> Iterator[dict[str, Any]]:
    """Yield one row of the page for each number of copies in a case, from the most to one.

    Flags are those of preset `screen` at 10%, means over the draws of the noise that are measured; without any they are
    missing.
    """
    setup, case = subject.trained.setup, subject.case
    passes = setup.recipe.steps * setup.recipe.batch / len(case.train)
    flagged = flagged_share(subject)
    for copies in np.unique(case.copies)[::-1]:
        mine = case.copies == copies
        yield {
            "case": setup.name,
            "seed": subject.trained.seed,
            "copies": int(copies),
            "images": int(mine.sum()),
            "times shown": round(float(copies * passes)),
            "reproduced, %": _percent(subject.positive[mine]),
            "flagged, of the reproduced, %": _percent(flagged[mine & subject.positive]),
            "flagged, of the others, %": _percent(flagged[mine & ~subject.positive]),
        }


def flagged_share(subject: Subject) -> np.ndarray:
    """Return in which share of the measured draws each family is flagged, (families,); NaN if none is measured."""
    found = list[np.ndarray]()
    for draw in range(DRAWS):
        with suppress(NotMeasuredError):
            found.append(is_flagged(audit_case(subject, ScreenMeasure(), draw)["q_value"]))
    return np.mean(found, 0) if found else np.full(len(subject.positive), np.nan)


def _percent(share: np.ndarray) -> str | None:
    return f"{100 * share.mean():.1f}" if len(share) and not np.isnan(share).any() else None
