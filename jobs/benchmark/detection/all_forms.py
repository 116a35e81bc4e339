"""Planted images whose copies differ, judged as an audit judges them: every form of an image is a row.

The bench measures a family in its first form, the image itself, and counts it as reproduced if samples hit it in any
form. Where copies are moved by a pixel, a model may learn the moved ones and not the image itself, which then has
little evidence, and rightly so. An audit measures every row. Here a family has the evidence of its strongest form, and
is flagged if one of its forms is; p-values and q-values are those of all rows together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jobs.benchmark.detection.audited_presets import DRAWS, analysis_code, evidence_of, fingerprint, score_table
from jobs.benchmark.detection.compared_scores import Preset
from jobs.benchmark.detection.subjects import (
    Columns,
    NotMeasuredError,
    Subject,
    describe_images,
    keep_derived,
    measure_shared,
)
from jobs.benchmark.detection.suite import Setup, is_trained, train_or_load
from jobs.experiments import say
from volgrowth.analysis.findings import analyse
from volgrowth.analysis.judging import is_flagged
from volgrowth.analysis.ranking import auroc, tpr_at_fpr
from volgrowth.audit.sampling.neighbours import Neighbours
from volgrowth.config import ScreenMeasure
from volgrowth.demo.cases import LabelledSet
from volgrowth.demo.truth import hit_families


@dataclass(frozen=True)
class Forms:
    """The distinct forms of a case's families: the first row of each, (n,), and the family that it belongs to, (n,)."""

    rows: np.ndarray
    family: np.ndarray

    @classmethod
    def of(cls, case: LabelledSet) -> "Forms":
        """Find the forms, in the order of their rows."""
        seen: dict[tuple[int, bytes], int] = {}
        for row, (image, family) in enumerate(zip(case.train, case.family.tolist(), strict=True)):
            seen.setdefault((family, image.tobytes()), row)
        return cls(np.array(list(seen.values())), np.array([family for family, _ in seen]))

    def strongest(self, values: np.ndarray, families: int) -> np.ndarray:
        """Return the largest of the values (n,) of each family's forms, (families,)."""
        largest = np.full(families, -np.inf)
        np.maximum.at(largest, self.family, values)
        return largest


def compare_forms(
    setups: Sequence[Setup], seeds: Sequence[int], data: Path, models: Path, *, cached_only: bool = False
) -> list[dict[str, Any]]:
    """Judge the evidence of presets `screen` and `standard` with every form of a family as a row.

    Args:
        setups: the cases; those whose copies are exact have one form a family, and are left out.
        seeds: of each case.
        data: folder of the image sets.
        models: folder of trained models and measurements; what is not there is made.
        cached_only: leave out what is not there.

    Returns:
        One row of the page for each model.
    """
    shown = []
    for setup in setups:
        for seed in seeds:
            if not setup.varies or (cached_only and not is_trained(setup, seed, data, models)):
                continue
            subject = Subject.of(train_or_load(setup, seed, data, models, say), cached_only=cached_only)
            say(f"judging the forms of {setup.name}, seed {seed}")
            forms = Forms.of(subject.case)
            draws = [judge_forms(subject, forms, found) for found in audit_forms(subject, forms)]
            if draws:
                numbers = {name: _spread([draw[name] for draw in draws], name) for name in draws[0]}
                reproduced = int((form_hits(subject, forms) >= subject.truth.min_hits).sum())
                shown.append({"case": setup.name, "seed": seed, "forms": len(forms.rows), **numbers})
                shown[-1]["forms reproduced"] = reproduced
    return shown


def audit_forms(subject: Subject, forms: Forms) -> Iterator[Columns]:
    """Yield the findings of each draw that could be measured: `evidence` and `q_value` of every form."""
    pixels = np.concatenate([subject.case.train[forms.rows], subject.case.holdout])
    every = replace(subject, pixels=pixels, described=describe_images(pixels))
    for draw in range(DRAWS):
        try:
            columns = measure_shared(every, Preset(ScreenMeasure(), "growth"), draw)
        except NotMeasuredError:
            continue
        table = score_table(every, columns)

        def derive(table: Any = table) -> Columns:
            audited = table[: len(forms.rows)]
            found = analyse(audited, table[len(forms.rows) :])
            return {"evidence": evidence_of(found, audited), "q_value": found.findings["q_value"].to_numpy()}

        yield keep_derived(every, f"forms of {sorted(columns)} {fingerprint(columns)} by {analysis_code()}", derive)


def judge_forms(subject: Subject, forms: Forms, found: Columns) -> dict[str, float]:
    """Return what the findings of every form say of families and of the forms that samples reproduce."""
    positive, planted, families = subject.positive, subject.planted, len(subject.positive)
    evidence = forms.strongest(found["evidence"], families)
    flagged_rows, innocent = is_flagged(found["q_value"]), ~positive & ~planted
    flagged = forms.strongest(flagged_rows.astype(float), families) > 0
    clear = positive | ~planted
    hit = form_hits(subject, forms) >= subject.truth.min_hits
    return {
        "AUROC": auroc(evidence[clear], positive[clear]),
        "TPR at 1% FPR": tpr_at_fpr(evidence[clear], positive[clear]),
        "FDR at 10%, rows": float((flagged_rows & innocent[forms.family]).sum() / max(flagged_rows.sum(), 1)),
        "FDR at 10%, families": float((flagged & innocent).sum() / max(flagged.sum(), 1)),
        "power at 10%": float(flagged[positive].mean()) if positive.any() else np.nan,
        "lower quartile": float(np.quantile(evidence[positive], 0.25)) if positive.any() else np.nan,
        "power, reproduced forms": float(flagged_rows[hit].mean()) if hit.any() else np.nan,
    }


def form_hits(subject: Subject, forms: Forms) -> np.ndarray:
    """Return the number of samples that hit each form, (n,): of those that hit its family the ones nearest to it."""
    samples, case = subject.trained.samples, subject.case
    hit = hit_families(samples, case.train, case.holdout, case.family)
    nearest = Neighbours(samples, 1)
    nearest.add(case.train[forms.rows], np.arange(len(forms.rows)))
    of_family = (hit >= 0) & (hit < len(case.names))
    return np.bincount(nearest.group[of_family, 0], minlength=len(forms.rows))


def _spread(values: Sequence[float], name: str) -> str:
    """Return the mean over draws, and the worst draw if it differs."""
    decimals, worst = 4 if name == "AUROC" else 2, max(values) if name.startswith("FDR") else min(values)
    mean, worst_said = f"{np.mean(values):.{decimals}f}", f"{worst:.{decimals}f}"
    return mean if mean == worst_said else f"{mean} ({worst_said})"
