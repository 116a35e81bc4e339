"""The bench's results as tables of text, for the page and for Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.benchmark.detection.experiment import Result, Subject
from jobs.benchmark.detection.metrics import METRICS, PROMISED, interval
from volgrowth.analysis.calibration.error_rates import fewest_flags
from volgrowth.report.formats import MISSING, missing

HEADLINE = "standard"

# what is asked of the headline score: realised rate at a promise of 20%, and power there
MOST_FALSE, LEAST_POWER = 0.30, 0.60


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Verdict:
    """The calibrated headline score against the best other one, raw or calibrated, by the area under the curve.

    Attributes:
        difference: headline minus best, with its paired bootstrap interval.
        matched: the best value lies within the headline's interval, or below it.
        kept: `MOST_FALSE` and `LEAST_POWER`.
    """

    case: str
    headline: Result
    best: Result
    difference: tuple[float, float, float]
    matched: bool
    kept: bool


def pooled(results: list[Result], case: str, *, calibrated: bool) -> list[Result]:
    """The means over seeds of one case, in the order of the scores."""
    return [r for r in results if (r.case, r.seed, r.calibrated) == (case, None, calibrated)]


def verdicts(results: list[Result], cases: Sequence[str]) -> list[Verdict]:
    """One for each case that has positives and a calibrated headline."""
    found = []
    for case in cases:
        every = [r for calibrated in (True, False) for r in pooled(results, case, calibrated=calibrated)]
        headline = [r for r in every if r.score.name == HEADLINE and r.calibrated]
        others = [r for r in every if r.score.name != HEADLINE and not np.isnan(r.values["auroc"])]
        if headline and others and not np.isnan(headline[0].values["auroc"]):
            best = max(others, key=lambda r: (r.values["auroc"], -(r.score.nfe or 0)))  # of equals the cheapest
            found.append(_verdict(case, headline[0], best))
    return found


def _verdict(case: str, headline: Result, best: Result) -> Verdict:
    values = headline.values
    difference = headline.replicates["auroc"] - best.replicates["auroc"]
    return Verdict(
        case=case,
        headline=headline,
        best=best,
        difference=(float(difference[0]), *interval(difference)),
        matched=values["auroc_high"] >= best.values["auroc"],
        kept=values["fdr_20"] <= MOST_FALSE and values["power_20"] >= LEAST_POWER,
    )


def verdict_table(found: list[Verdict]) -> Table:
    """The question the bench is for."""
    rows = [
        [
            verdict.case,
            _with_interval(verdict.headline, "auroc"),
            _with_interval(verdict.headline, "tpr_at_1_fpr"),
            f"{verdict.best.score.name}, {_kind(verdict.best)}",
            _figure(verdict.best.values["auroc"], 4),
            f"{verdict.difference[0]:+.4f} ({verdict.difference[1]:+.4f} to {verdict.difference[2]:+.4f})",
            "yes" if verdict.matched else "no",
            _figure(verdict.headline.values["fdr_20"]),
            _figure(verdict.headline.values["fdr_clear_20"]),
            _figure(verdict.headline.values["power_20"]),
            "yes" if verdict.kept else "no",
        ]
        for verdict in found
    ]
    nfe = found[0].headline.score.nfe if found else None
    return Table(
        f"Calibrated {HEADLINE} against the best other score",
        f"{HEADLINE} spends {nfe} evaluations an image. It matches when the best other score's AUROC, raw or "
        f"calibrated and at any cost, is not above its 95% interval. Promises are kept when of the flags at a promised "
        f"20% at most {MOST_FALSE:.0%} are not reproduced, and {LEAST_POWER:.0%} of the reproduced images or more are "
        "flagged; beside it the share of flags that are neither reproduced nor planted in copies.",
        [
            "case",
            "AUROC",
            "TPR at 1% FPR",
            "best other",
            "its AUROC",
            "difference",
            "matches",
            "FDR at 20%",
            "unplanted",
            "power at 20%",
            "kept",
        ],
        rows,
    )


def case_table(subjects: Sequence[Subject]) -> Table:
    """What was planted, and what samples reproduce."""
    return Table(
        "Cases",
        "Reproduced: hit by at least the hits needed, a number that leaves at most one false hit in twenty by the rate "
        "at which held-out images are hit. A family is an image with all of its copies. The smallest p-value is one "
        "over the held-out images and one, so a promised rate can only be kept with the flags needed or more.",
        [
            "case",
            "seed",
            "image",
            "families",
            "held out",
            "reproduced",
            "of single ones",
            "samples",
            "hits needed",
            f"flags needed at {' / '.join(f'{rate:.0%}' for rate in PROMISED)}",
        ],
        [_case_row(subject) for subject in subjects],
    )


def _case_row(subject: Subject) -> list[str]:
    copies, positive = subject.case.copies, subject.positive
    planted = [
        f"{positive[copies == count].sum()} of {(copies == count).sum()} at ×{count}"
        for count in np.unique(copies)[::-1]
        if count > 1
    ]
    return [
        subject.trained.setup.name,
        str(subject.trained.seed),
        " × ".join(map(str, subject.case.train.shape[1:])),
        str(len(copies)),
        str(len(subject.case.holdout)),
        ", ".join(planted),
        str(int(positive[copies == 1].sum())),
        str(len(subject.trained.samples)),
        str(subject.truth.min_hits),
        " / ".join(str(count) for count in _fewest_flags(subject)),
    ]


def _fewest_flags(subject: Subject) -> list[int]:
    tests, held = (len(np.unique(images.content)) for images in subject.images(np.zeros(len(subject.pixels))))
    return [fewest_flags(tests, held, rate) for rate in PROMISED]


def detection_table(results: list[Result], case: str) -> Table:
    """How well each score finds what is reproduced: mean over seeds."""
    calibrated = {r.score.name: r for r in pooled(results, case, calibrated=True)}
    rows = []
    for raw in pooled(results, case, calibrated=False):
        after = calibrated.get(raw.score.name)
        rows.append(
            [
                raw.score.name,
                _count(raw.score.nfe),
                *(_with_interval(raw, name) for name in METRICS[:2]),
                *(_with_interval(after, name) for name in METRICS),
                _value(after, "auroc_clear"),
            ]
        )
    return Table(
        f"{case}: detection",
        "Mean over seeds with bootstrap 95% intervals over images, the calibration held fixed. Precision is among the "
        "k highest, k the number of reproduced images. The last column leaves out images that were planted and not "
        "reproduced; all others count them as negatives.",
        [
            "score",
            "evaluations",
            "raw AUROC",
            "raw TPR at 1% FPR",
            "calibrated AUROC",
            "calibrated TPR at 1% FPR",
            "calibrated precision",
            "AUROC without planted negatives",
        ],
        rows,
    )


def promise_table(results: list[Result], case: str) -> Table:
    """Realised false-discovery rate and power, and blindness to membership: mean over seeds."""
    raw = {r.score.name: r for r in pooled(results, case, calibrated=False)}
    rows = [
        [
            after.score.name,
            *(
                " / ".join(_value(after, f"{name}_{100 * rate:.0f}") for name in ("fdr", "fdr_clear", "power"))
                for rate in PROMISED
            ),
            _value(after, "r2"),
            _value(raw[after.score.name], "member_auroc"),
            _value(after, "member_auroc"),
        ]
        for after in pooled(results, case, calibrated=True)
    ]
    return Table(
        f"{case}: promised rates, and membership",
        "At each promised rate: share of flags that are not reproduced / that are neither reproduced nor planted / "
        "share of reproduced images that are flagged. Variance of the score that complexity explains. AUROC of images "
        "trained on once against held-out ones, plain images apart: .5 is blind to mere membership.",
        [
            "score",
            *(f"FDR / unplanted / power at {rate:.0%}" for rate in PROMISED),
            "explained",
            "membership, raw",
            "membership, calibrated",
        ],
        rows,
    )


def markdown(table: Table) -> str:
    """A Markdown table under its heading and note."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"## {table.title}\n\n{table.note}\n\n{body}\n"


def _kind(result: Result) -> str:
    return "calibrated" if result.calibrated else "raw"


def _count(value: int | None) -> str:
    return MISSING if value is None else str(value)


def _figure(value: float, decimals: int = 2) -> str:
    return MISSING if missing(value) else f"{value:.{decimals}f}"


def _value(result: Result | None, name: str) -> str:
    return MISSING if result is None else _figure(result.values.get(name, np.nan), 3 if name == "auroc_clear" else 2)


def _with_interval(result: Result | None, name: str) -> str:
    if result is None or missing(result.values[name]):
        return MISSING
    decimals = 3 if name == "auroc" else 2
    value, low, high = (result.values[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:.{decimals}f} ({low:.{decimals}f}–{high:.{decimals}f})"
