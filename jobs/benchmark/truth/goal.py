"""One table of all models whose samples reproduce enough images: does the evidence of the shipped presets find them?

Everything is taken from the cache; nothing is trained or measured. A number is a mean over the draws of what is random
in a preset, with the worst draw beside it. Pairs of an image and a condition stand for images where models know any.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.benchmark.detection.audited_presets import CONTESTANTS, Contestant, audit_case
from jobs.benchmark.detection.subjects import NotMeasuredError, Subject
from jobs.benchmark.detection.suite import Setup, is_trained, train_or_load
from jobs.benchmark.detection.targets import Target
from jobs.benchmark.truth.conditions import (
    PairTruth,
    measured_pairs,
    pair_evidence,
    pair_results,
    pair_subject,
)
from jobs.benchmark.truth.pair_models import pairs_are_trained, train_or_load_pairs
from jobs.benchmark.truth.pairs import PairSetup
from jobs.benchmark.truth.world import FEW
from jobs.experiments import Outcome, say
from volgrowth.analysis.ranking import auroc, tpr_at_fpr

GOAL = (Target("auroc", "AUROC", 0.99, decimals=4), Target("tpr_at_1_fpr", "TPR at 1% FPR", 0.9))
PRESETS = ("screen", "standard")


@dataclass(frozen=True)
class OnModel:
    """What one preset finds on one model.

    Attributes:
        model: case and seed.
        reproduced: number of images, or of pairs, that samples reproduce.
        of: what is counted: `images` or `pairs`.
        preset: its name.
        values: of each draw, by the name of the target, (draws,); empty if the preset was not measured.
    """

    model: tuple[str, int]
    reproduced: int
    of: str
    preset: str
    values: dict[str, np.ndarray]

    @property
    def missed(self) -> list[str]:
        """The targets missed, as text."""
        means = {target: float(self.values[target.name].mean()) for target in GOAL}
        return [target.shortfall(value) for target, value in means.items() if target.missed(value)]

    def row(self) -> dict[str, Any]:
        """Return the row of the page."""
        case, seed = self.model
        shown = {target.label: _spread(self.values[target.name], target.decimals) for target in GOAL}
        counted = {"case": case, "seed": seed, "reproduced": f"{self.reproduced} {self.of}", "preset": self.preset}
        return counted | shown | {"missed": "; ".join(self.missed) or "none"}


def compare_with_goal(
    setups: Sequence[Setup], conditioned: Sequence[PairSetup], seeds: Sequence[int], data: Path, models: Path
) -> Outcome:
    """Return the table of the page.

    Args:
        setups: cases of images.
        conditioned: cases of pairs of an image and a condition.
        seeds: of each case.
        data: folder of the image sets.
        models: folder of trained models and measurements; models that are not there are named.
    """
    found, absent = list[OnModel](), list[str]()
    for seed in seeds:
        for setup in setups:
            if is_trained(setup, seed, data, models):
                found += _of_images(setup, seed, data, models)
            else:
                absent.append(f"Left out, since its model is not trained: {setup.name} with seed {seed}.")
        for pairs in conditioned:
            if pairs_are_trained(pairs, seed, data, models):
                found += _of_pairs(pairs, seed, data, models)
            else:
                absent.append(f"Left out, since its model is not trained: {pairs.name} with seed {seed}.")
    order = [*(setup.name for setup in setups), *(pairs.name for pairs in conditioned)]
    found.sort(key=lambda one: (order.index(one.model[0]), one.model[1], one.preset))
    judged = [one for one in found if one.reproduced >= FEW and one.values]
    return Outcome(
        [*_sentences(found), *absent],
        {"table": [one.row() for one in judged]},
    )


def _of_images(setup: Setup, seed: int, data: Path, models: Path) -> Iterator[OnModel]:
    subject = Subject.of(train_or_load(setup, seed, data, models, say), cached_only=True)
    count = int(subject.positive.sum())
    for contestant in CONTESTANTS:
        if contestant.name in PRESETS:
            values = _in_draws(subject, contestant) if count else {}
            yield OnModel((setup.name, seed), count, "images", contestant.name, values)


def _in_draws(subject: Subject, contestant: Contestant) -> dict[str, np.ndarray]:
    """Return the values of each target by the draws that are measured; none if no draw is."""
    clear, found = subject.positive | ~subject.planted, list[tuple[float, float]]()
    for draw in range(contestant.draws):
        with suppress(NotMeasuredError):
            evidence = audit_case(subject, contestant.measure, draw)["evidence"][clear]
            found.append((auroc(evidence, subject.positive[clear]), tpr_at_fpr(evidence, subject.positive[clear])))
    return dict(zip(("auroc", "tpr_at_1_fpr"), np.transpose(found), strict=True)) if found else {}


def _of_pairs(setup: PairSetup, seed: int, data: Path, models: Path) -> Iterator[OnModel]:
    """Judge the evidence of preset `standard` under conditions; `screen` measures the same parts of it."""
    trained = train_or_load_pairs(setup, seed, data, models, say)
    truth = PairTruth.of(trained)
    subject = pair_subject(trained, truth)
    evidence = pair_evidence(subject, measured_pairs(trained, subject))["evidence"]
    for of, reproduced in (("pairs", truth.plain), ("pairs, guided", truth.guided)):
        detected = pair_results(trained, reproduced, evidence)
        values = {target.name: detected[target.name][:1] for target in GOAL} if detected else {}
        count = int((reproduced.images & trained.case.asked).sum())
        yield OnModel((setup.name, seed), count, of, "standard", values)


def _sentences(found: Sequence[OnModel]) -> Iterator[str]:
    """Say where the goal is missed, and where it is not judged."""
    for one in found:
        name = f"{one.model[0]} with seed {one.model[1]}" + (", guided" if "guided" in one.of else "")
        if one.reproduced < FEW and one.preset == "standard":
            yield f"{name}: not judged, since samples reproduce {one.reproduced}, fewer than {FEW}."
        elif one.reproduced >= FEW and not one.values:
            yield f"{name}: left out, since `{one.preset}` is not measured."
        elif one.reproduced >= FEW and one.missed:
            yield f"{name}: missed by the evidence of `{one.preset}`: {', '.join(one.missed)}."


def _spread(values: np.ndarray, decimals: int) -> str:
    """Return the mean over draws, and the worst draw if it differs."""
    mean, worst = f"{values.mean():.{decimals}f}", f"{values.min():.{decimals}f}"
    return mean if mean == worst else f"{mean} ({worst})"
