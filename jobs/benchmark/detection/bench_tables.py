"""The detection bench as a command: presets and scores on every case, as a Parquet table and as tables of its page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from jobs.benchmark.detection.audited_presets import Contestant
from jobs.benchmark.detection.compared_scores import Score
from jobs.benchmark.detection.experiment import Bench, Result, result_table, run_bench
from jobs.benchmark.detection.subjects import Subject
from jobs.benchmark.detection.suite import Setup
from jobs.benchmark.detection.targets import target_rows, target_sentences
from jobs.experiments import Outcome
from jobs.pages import made_by
from volgrowth.report.formats import MISSING, missing


def bench(
    setups: Sequence[Setup],
    seeds: Sequence[int],
    data: Path,
    output: Path,
    scores: Sequence[Score | Contestant],
    *,
    cached_only: bool = False,
) -> Outcome:
    """Run presets and scores on every case, and write all numbers to `output`/detection.parquet."""
    found = run_bench(setups, seeds, data, output, scores, cached_only=cached_only)
    output.mkdir(parents=True, exist_ok=True)
    metadata = {"made by": made_by(packages=("diffusers", "scikit-learn"))}
    pq.write_table(result_table(found.results).replace_schema_metadata(metadata), output / "detection.parquet")
    return bench_outcome(found)


def bench_outcome(found: Bench) -> Outcome:
    """Return the tables of the page, and what they say of the presets."""
    names = list(dict.fromkeys(subject.trained.setup.name for subject in found.subjects))
    targets = [row for subject in found.subjects if (row := target_rows(found.results, subject))]
    used = {(result.score.name, result.is_preset): result.score for result in found.results}
    return Outcome(
        [*target_sentences(targets), *least_evidence(found.results), *say_left_out(found)],
        {
            "targets": [row.shown for row in targets],
            "presets": [row for name in names for row in preset_rows(found.results, name)],
            "found": score_rows(found.results, names),
            "cases": [case_row(subject) for subject in found.subjects],
            "scores": [
                {"score": score.name, "evaluations": score.nfe, "definition": score.source} for score in used.values()
            ],
        },
    )


def say_left_out(found: Bench) -> list[str]:
    """Say which models are not trained, and which scores are not measured."""
    said = [f"Left out, since its model is not trained: {case} with seed {seed}." for case, seed in found.untrained]
    if found.unmeasured:
        lacking = [f"{score} on {_listed(models)}" for score, models in found.unmeasured.items()]
        said.append(f"Left out, since not measured: {'; '.join(lacking)}.")
    return said


def _listed(models: Sequence[tuple[str, int]]) -> str:
    """Return models as text, the seeds of each case together."""
    seeds: dict[str, list[str]] = {}
    for case, seed in models:
        seeds.setdefault(case, []).append(str(seed))
    return ", ".join(f"{case} (seed {' and '.join(numbers)})" for case, numbers in seeds.items())


def least_evidence(results: Sequence[Result]) -> list[str]:
    """Say which evidence three quarters of the reproduced images exceed in the worst draw on any model, by preset."""
    sentences = []
    presets = [r for r in results if r.is_preset and r.seed is not None and not missing(r.values["lower_quartile"])]
    for name in dict.fromkeys(result.score.name for result in presets):
        mine = [result for result in presets if result.score.name == name]
        worst = min(mine, key=lambda result: result.values["lower_quartile"])
        sentences.append(
            f"Evidence of `{name}`: three quarters of the images that samples reproduce have more than "
            f"{worst.values['lower_quartile']:.2f} in every draw on every model; the least is that of {worst.case} "
            f"with seed {worst.seed}."
        )
    return sentences


def preset_rows(results: Sequence[Result], case: str) -> list[dict[str, Any]]:
    """Return what the evidence of each preset finds in a case: the mean over seeds and draws, with intervals."""
    return [
        {
            "case": case,
            "preset": result.score.name,
            "evaluations": result.score.nfe,
            "AUROC": _with_interval(result, "auroc", 4),
            "TPR at 1% FPR": _with_interval(result, "tpr_at_1_fpr"),
            "power at 10%": _with_interval(result, "power_10"),
            "FDR at 10%": _with_interval(result, "fdr_clear_10"),
            "FDR, planted ones false": _with_interval(result, "fdr_10"),
            "AUROC, planted ones negative": _value(result, "auroc_all", 4),
            "membership": _value(result, "member_auroc"),
        }
        for result in results
        if result.is_preset and result.case == case and result.seed is None
    ]


def score_rows(results: Sequence[Result], cases: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the evidence of presets and what single scores find, one column a case: the means over seeds.

    A cell has the AUROC of the raw score, which evidence lacks, that of the calibrated one, and its TPR at 1% FPR.
    """
    means = {(r.case, r.score.name, r.is_preset, r.calibrated): r for r in results if r.seed is None}
    rows = []
    for (_, name, is_preset, _), result in sorted(means.items(), key=lambda item: not item[0][2]):
        row = {"score": f"evidence of {name}" if is_preset else name, "evaluations": result.score.nfe}
        for case in cases:
            raw, calibrated = (means.get((case, name, is_preset, which)) for which in (False, True))
            shown = _value(raw, "auroc", 3), _value(calibrated, "auroc", 3), _value(calibrated, "tpr_at_1_fpr")
            row[case] = " / ".join(value or MISSING for value in shown)
        if row not in rows:
            rows.append(row)
    return rows


def case_row(subject: Subject) -> dict[str, Any]:
    """Return what was planted, and what samples reproduce."""
    copies, positive = subject.case.copies, subject.positive
    planted = [
        f"{positive[copies == count].sum()} of {(copies == count).sum()} at ×{count}"
        for count in np.unique(copies)[::-1]
        if count > 1
    ]
    return {
        "case": subject.trained.setup.name,
        "seed": subject.trained.seed,
        "image": " × ".join(map(str, subject.case.train.shape[1:])),
        "families": len(copies),
        "held out": len(subject.case.holdout),
        "reproduced": ", ".join(planted) or MISSING,
        "of single ones": int(positive[copies == 1].sum()),
        "samples": len(subject.trained.samples),
        "hits needed": subject.truth.min_hits,
    }


def _value(result: Result | None, name: str, decimals: int = 2) -> str | None:
    value = None if result is None else result.values.get(name)
    return None if value is None or missing(value) else f"{value:.{decimals}f}"


def _with_interval(result: Result, name: str, decimals: int = 2) -> str | None:
    value, low, high = (_value(result, f"{name}{end}", decimals) for end in ("", "_low", "_high"))
    return None if value is None else f"{value} ({low}–{high})"
