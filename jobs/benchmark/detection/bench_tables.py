"""The detection bench as a command: every score on every case, as a Parquet table and as the tables of its page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from jobs.benchmark.detection.compared_scores import Score
from jobs.benchmark.detection.experiment import Result, Subject, result_table, run_bench
from jobs.benchmark.detection.metrics import METRICS, PROMISED, interval
from jobs.benchmark.detection.suite import Setup
from jobs.experiments import Outcome
from jobs.pages import made_by
from volgrowth.analysis.calibration.error_rates import fewest_flags
from volgrowth.report.formats import MISSING, missing

HEADLINE = "standard"

# the headline score keeps its promise if, at a promised 20%, this share of its flags is false at most, and this share
# of the reproduced images is flagged at least
MOST_FALSE, LEAST_POWER = 0.30, 0.60


def bench(setups: Sequence[Setup], seeds: int, data: Path, output: Path, scores: Sequence[Score]) -> Outcome:
    """Run every score on every case, and write all numbers to `output`/detection.parquet."""
    results, subjects = run_bench(setups, seeds, data, output, scores)
    output.mkdir(parents=True, exist_ok=True)
    metadata = {"made by": made_by(packages=("diffusers", "scikit-learn"))}
    pq.write_table(result_table(results).replace_schema_metadata(metadata), output / "detection.parquet")
    return bench_outcome(results, subjects, seeds)


def bench_outcome(results: list[Result], subjects: Sequence[Subject], seeds: int) -> Outcome:
    """Return the tables of the page, and what they say of the headline score."""
    names = list(dict.fromkeys(subject.trained.setup.name for subject in subjects))
    verdicts = verdict_rows(results, names)
    matched, kept = (sum(row[column] == "yes" for row in verdicts) for column in ("matches", "kept"))
    used = dict.fromkeys(result.score for result in results)
    return Outcome(
        [
            f"Calibrated {HEADLINE} matches the best other score in {matched} of {len(verdicts)} cases. Its flags at a "
            f"promised 20% keep that promise, and find enough, in {kept}."
        ],
        {
            "verdicts": verdicts,
            "cases": [_case_row(subject) for subject in subjects],
            "found": [row for name in names for row in detection_rows(results, name)],
            "rates": [row for name in names for row in _rate_rows(results, name)],
            "scores": [{"score": score.name, "evaluations": score.nfe, "definition": score.source} for score in used],
        },
        {"cases": ", ".join(names), "seeds": seeds},
    )


def seed_means(results: list[Result], case: str, *, calibrated: bool) -> list[Result]:
    """Return the means over seeds of one case, in the order of the scores."""
    return [r for r in results if (r.case, r.seed, r.calibrated) == (case, None, calibrated)]


def verdict_rows(results: list[Result], cases: Sequence[str]) -> list[dict[str, Any]]:
    """Compare the calibrated headline score with the best other one, raw or calibrated, by the area under the curve.

    Returns:
        One row for each case that has positives and a calibrated headline. "matches" says that the best value lies
        within the headline's interval, or below it; "difference" is headline minus best with its paired bootstrap
        interval; "kept" is the promise of `MOST_FALSE` and `LEAST_POWER`.
    """
    rows = []
    for case in cases:
        every = [r for calibrated in (True, False) for r in seed_means(results, case, calibrated=calibrated)]
        headline = [r for r in every if r.score.name == HEADLINE and r.calibrated]
        others = [r for r in every if r.score.name != HEADLINE and not np.isnan(r.values["auroc"])]
        if headline and others and not np.isnan(headline[0].values["auroc"]):
            best = max(others, key=lambda r: (r.values["auroc"], -(r.score.nfe or 0)))  # of equals the cheapest
            rows.append(_verdict_row(case, headline[0], best))
    return rows


def _verdict_row(case: str, headline: Result, best: Result) -> dict[str, Any]:
    values = headline.values
    differences = headline.replicates["auroc"] - best.replicates["auroc"]
    low, high = interval(differences)
    kept = values["fdr_20"] <= MOST_FALSE and values["power_20"] >= LEAST_POWER
    return {
        "case": case,
        "AUROC": _with_interval(headline, "auroc"),
        "TPR at 1% FPR": _with_interval(headline, "tpr_at_1_fpr"),
        "best other": f"{best.score.name}, {'calibrated' if best.calibrated else 'raw'}",
        "its AUROC": _value(best, "auroc", 4),
        "difference": f"{differences[0]:+.4f} ({low:+.4f} to {high:+.4f})",
        "matches": "yes" if values["auroc_high"] >= best.values["auroc"] else "no",
        "FDR at 20%": _value(headline, "fdr_20"),
        "unplanted": _value(headline, "fdr_clear_20"),
        "power at 20%": _value(headline, "power_20"),
        "kept": "yes" if kept else "no",
    }


def _case_row(subject: Subject) -> dict[str, Any]:
    """Return what was planted, and what samples reproduce."""
    copies, positive = subject.case.copies, subject.positive
    planted = [
        f"{positive[copies == count].sum()} of {(copies == count).sum()} at ×{count}"
        for count in np.unique(copies)[::-1]
        if count > 1
    ]
    tests, held = (len(np.unique(images.content)) for images in subject.images(np.zeros(len(subject.pixels))))
    return {
        "case": subject.trained.setup.name,
        "seed": subject.trained.seed,
        "image": " × ".join(map(str, subject.case.train.shape[1:])),
        "families": len(copies),
        "held out": len(subject.case.holdout),
        "reproduced": ", ".join(planted),
        "of single ones": int(positive[copies == 1].sum()),
        "samples": len(subject.trained.samples),
        "hits needed": subject.truth.min_hits,
        f"flags needed at {' / '.join(f'{rate:.0%}' for rate in PROMISED)}": " / ".join(
            str(fewest_flags(tests, held, rate)) for rate in PROMISED
        ),
    }


def detection_rows(results: list[Result], case: str) -> list[dict[str, Any]]:
    """Return how well each score finds what is reproduced: one row a score, the mean over seeds."""
    calibrated = {r.score.name: r for r in seed_means(results, case, calibrated=True)}
    rows = []
    for raw in seed_means(results, case, calibrated=False):
        after = calibrated.get(raw.score.name)
        columns = {f"raw {_HEADINGS[name]}": _with_interval(raw, name) for name in METRICS[:2]}
        columns |= {f"calibrated {_HEADINGS[name]}": _with_interval(after, name) for name in METRICS}
        columns |= {"AUROC without planted negatives": _value(after, "auroc_clear", 3)}
        rows.append({"case": case, "score": raw.score.name, "evaluations": raw.score.nfe, **columns})
    return rows


_HEADINGS = dict(zip(METRICS, ("AUROC", "TPR at 1% FPR", "precision"), strict=True))


def _rate_rows(results: list[Result], case: str) -> list[dict[str, Any]]:
    """Return realised rates and power, and blindness to membership: one row a score, the mean over seeds."""
    raw = {r.score.name: r for r in seed_means(results, case, calibrated=False)}
    rows = []
    for after in seed_means(results, case, calibrated=True):
        parts = {
            f"FDR / unplanted / power at {rate:.0%}": " / ".join(
                _value(after, f"{name}_{100 * rate:.0f}") or MISSING for name in ("fdr", "fdr_clear", "power")
            )
            for rate in PROMISED
        }
        blind = {
            "explained": _value(after, "r2"),
            "membership, raw": _value(raw[after.score.name], "member_auroc"),
            "membership, calibrated": _value(after, "member_auroc"),
        }
        rows.append({"case": case, "score": after.score.name, **parts, **blind})
    return rows


def _value(result: Result | None, name: str, decimals: int = 2) -> str | None:
    value = None if result is None else result.values.get(name)
    return None if value is None or missing(value) else f"{value:.{decimals}f}"


def _with_interval(result: Result | None, name: str) -> str | None:
    decimals = 3 if name == "auroc" else 2
    value, low, high = (_value(result, f"{name}{end}", decimals) for end in ("", "_low", "_high"))
    return None if value is None else f"{value} ({low}–{high})"
