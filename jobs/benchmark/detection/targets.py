"""What the presets are expected to find, and whether each model of the bench shows it.

A target is met by the mean over the draws of what is random; the worst draw stands beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.benchmark.detection.experiment import Result
from jobs.benchmark.detection.subjects import Subject


@dataclass(frozen=True)
class Target:
    """A bound on one number of a preset: the least that it may be, or the most.

    Attributes:
        name: of the number in `Result.values`.
        label: of the number on the page.
        bound: the bound itself.
        least: True for the least, False for the most.
        decimals: of the number on the page.
    """

    name: str
    label: str
    bound: float
    least: bool = True
    decimals: int = 2

    def missed(self, value: float) -> bool:
        """Return whether a number misses the target."""
        return value < self.bound if self.least else value > self.bound

    def shortfall(self, value: float) -> str:
        """Return a number that misses the target, beside the bound."""
        return f"{self.label} {value:.{self.decimals}f} {'<' if self.least else '>'} {self.bound:g}"


KEPT = (Target("fdr_clear_10", "FDR", 0.13, least=False), Target("power_10", "power", 0.9))
TARGETS = {
    "standard": (
        Target("auroc", "AUROC", 0.999, decimals=4),
        Target("tpr_at_1_fpr", "TPR", 0.97),
        *KEPT,
    ),
    "screen": (Target("auroc", "AUROC", 0.998, decimals=4), *KEPT),
}
# of a case with very many images and few held out
LARGE = "hanzi-large"
LARGE_TARGETS = (Target("fdr_clear_10", "FDR", 0.3, least=False), Target("power_10", "power", 0.8))
# seed whose models were looked at when levels, parts and presets were chosen
CHOSEN_ON = 1
# further models that were looked at when the weight of the noise norm was chosen
ALSO_LOOKED_AT = (("digits-shifted", 2), ("digits-shifted", 3), ("emoji-exact", 2))


@dataclass(frozen=True)
class Verdict:
    """A model and what its presets miss.

    Attributes:
        shown: the row of the page.
        looked_at: whether the model was looked at when something was chosen.
        missed: the targets missed, as text, by the name of the preset.
        large: whether the model is that of the large case.
    """

    shown: dict[str, Any]
    looked_at: bool
    missed: dict[str, list[str]]
    large: bool


def target_rows(results: Sequence[Result], subject: Subject) -> Verdict | None:
    """Compare the presets with their targets on one model; None if no preset with targets was measured."""
    setup, seed = subject.trained.setup, subject.trained.seed
    large = setup.name == LARGE
    looked_at = (seed == CHOSEN_ON and not large) or (setup.name, seed) in ALSO_LOOKED_AT
    shown: dict[str, Any] = {"case": setup.name, "seed": seed, "looked at": "yes" if looked_at else "no"}
    missed = dict[str, list[str]]()
    for preset, targets in TARGETS.items():
        draws = [r for r in results if r.is_preset and (r.score.name, r.case, r.seed) == (preset, setup.name, seed)]
        if draws and subject.positive.any():
            chosen = LARGE_TARGETS if large else targets
            means = {target: float(np.mean([draw.values[target.name] for draw in draws])) for target in chosen}
            missed[preset] = [target.shortfall(value) for target, value in means.items() if target.missed(value)]
            shown |= {f"{preset}: {target.label}": _spread(draws, target) for target in targets}
            shown[f"{preset}: missed"] = "; ".join(missed[preset]) or "none"
    return Verdict(shown, looked_at, missed, large) if missed else None


def _spread(draws: Sequence[Result], target: Target) -> str:
    """Return the mean over draws, and the worst draw if it differs."""
    values = [draw.values[target.name] for draw in draws]
    mean, worst = (
        f"{value:.{target.decimals}f}" for value in (np.mean(values), min(values) if target.least else max(values))
    )
    return mean if worst == mean else f"{mean} ({worst})"


def target_sentences(rows: Sequence[Verdict]) -> list[str]:
    """Say on how many models each preset meets its targets, and name each one that it misses."""
    sentences = []
    for preset, targets in TARGETS.items():
        for large, chosen in ((False, targets), (True, LARGE_TARGETS)):
            mine = [row for row in rows if row.large == large and preset in row.missed]
            if not mine:
                continue
            wanted = ", ".join(f"{target.label} {'≥' if target.least else '≤'} {target.bound:g}" for target in chosen)
            counts = []
            for looked_at, kind in ((False, "never looked at"), (True, "looked at when something was chosen")):
                group = [row for row in mine if row.looked_at == looked_at]
                if group:
                    met = sum(not row.missed[preset] for row in group)
                    counts.append(f"{met} of {len(group)} models {kind}")
            short = [
                f"{row.shown['case']} with seed {row.shown['seed']} ({', '.join(row.missed[preset])})"
                for row in mine
                if row.missed[preset]
            ]
            where = f" in {LARGE}" if large else ""
            misses = f" Missed: {'; '.join(short)}." if short else ""
            sentences.append(f"`{preset}`{where} ({wanted}): all met by {' and by '.join(counts)}.{misses}")
    return sentences
