"""Rates of generation on the bench's models, compared with how often samples hit the same images.

Each image is rated as `volgrowth verify --rates` does: the sampler's own grid, a draw is a copy if it hits any form of
the image's family, and the images around it are those of the training set and the held-out ones.
"""

import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.benchmark.detection.subjects import states_of
from jobs.benchmark.detection.suite import Setup, Trained, models_of
from jobs.experiments import Outcome, say
from volgrowth.analysis.verification.generated import WITHIN
from volgrowth.audit.sampling.drawing import STEPS, to_pixels
from volgrowth.audit.sampling.neighbours import Neighbours
from volgrowth.audit.sampling.rating import RIVALS, Around
from volgrowth.demo.training import one_thread
from volgrowth.models import load_model
from volgrowth.numerics.generation_rate import GenerationRate, generation_rate


@dataclass(frozen=True)
class Checked:
    """An image's family, the number of samples that hit it, and its rate."""

    family: int
    hits: int
    found: GenerationRate

    def ratio(self, samples: int) -> float:
        """Return the rate over the share of samples that hit."""
        return self.found.rate / (self.hits / samples)


def check_rates(
    setups: Sequence[Setup], seeds: Sequence[int], data: Path, models: Path, images: int, *, cached_only: bool = False
) -> Outcome:
    """Rate some of the images that samples hit, on every model, from those of most hits to those of one.

    Args:
        setups: the cases.
        seeds: of each case.
        data: folder of the image sets.
        models: folder of trained models.
        images: images a model to rate.
        cached_only: leave out models that are not there.
    """
    rows, said = list[dict[str, Any]](), list[str]()
    for trained in models_of(setups, seeds, data, models, said, cached_only=cached_only):
        name, seed = trained.setup.name, trained.seed
        checked = rate_or_load(trained, images)
        if not checked:
            said.append(f"Left out, since samples hit no image of it: {name} with seed {seed}.")
            continue
        ratios = [one.ratio(len(trained.samples)) for one in checked if one.found.measurable]
        rows.append({"case": name, "seed": seed, **_row(checked, ratios, len(trained.samples))})
        said.append(f"{name} with seed {seed}: {_measured(len(checked), ratios)}.")
    return Outcome(said, {"table": rows}, {"images a model, at most": images})


def _measured(images: int, ratios: Sequence[float]) -> str:
    """Say how many rates are measurable, and how near they come to what samples show."""
    found = f"of {images} images that samples hit the rates of {len(ratios)} are measurable"
    if not ratios:
        return found
    within = sum(abs(log(ratio)) <= log(WITHIN) for ratio in ratios)
    return f"{found}, {within} of them within a factor of {WITHIN:g} of the share of samples that hit"


def _row(checked: Sequence[Checked], ratios: Sequence[float], samples: int) -> dict[str, Any]:
    return {
        "images": len(checked),
        "hits": f"{min(one.hits for one in checked)} to {max(one.hits for one in checked)} of {samples:,}",
        "measurable": len(ratios),
        **{f"within a factor of {most:g}": sum(abs(log(r)) <= log(most) for r in ratios) for most in (2, WITHIN)},
        "rate over share of hits": f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "–",
        "geometric mean": f"{exp(np.mean(np.log(ratios))):.2f}" if ratios else "–",
        "evaluations an image": round(float(np.mean([one.found.nfe for one in checked])), -2),
    }


def rate_or_load(trained: Trained, images: int) -> list[Checked]:
    """Rate families that samples hit: as many, evenly spaced from the most hits to the fewest.

    Each rate is kept beside the model, under a name that changes with the code, so that a run goes on where another one
    stopped.
    """
    hits = trained.truth().hits
    hit = np.flatnonzero(hits)
    order = hit[np.argsort(-hits[hit], kind="stable")]
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(images, len(order))).round().astype(int))].tolist()
    parts = (inspect.getmodule(generation_rate), inspect.getmodule(Around), rate_families)
    code = hashlib.sha256("".join(inspect.getsource(part) for part in parts if part).encode()).hexdigest()[:12]
    paths = {family: trained.model.parent / f"rate-{code}" / f"{family}.json" for family in chosen}
    for family, found in rate_families(trained, [family for family in chosen if not paths[family].exists()]):
        paths[family].parent.mkdir(exist_ok=True)
        paths[family].write_text(json.dumps(asdict(found)))
    return [
        Checked(family, int(hits[family]), GenerationRate(**json.loads(path.read_text())))
        for family, path in paths.items()
    ]


def rate_families(trained: Trained, families: Sequence[int]) -> Iterator[tuple[int, GenerationRate]]:
    """Yield each family and its rate."""
    if not families:
        return
    say(f"rating images of {trained.setup.name}, seed {trained.seed}")
    case, chosen = trained.case, np.array(families)
    model, everything = load_model(str(trained.model)), np.concatenate([case.train, case.holdout])
    groups = np.concatenate([case.family, len(case.names) + np.arange(len(case.holdout))])
    near = Neighbours(case.train[case.first][chosen], min(RIVALS + 1, len(case.names) + len(case.holdout)))
    near.add(everything, groups)
    levels = model.sampling_levels(STEPS)
    for family, around in zip(families, near.group, strict=True):
        rivals = np.isin(groups, around[(around >= 0) & (around != family)])
        judge = Around(
            np.unique(case.train[case.family == family], axis=0),
            everything[rivals],
            np.unique(groups[rivals], return_inverse=True)[1],
        )

        def returns(states: Tensor, judge: Around = judge) -> Tensor:
            return torch.from_numpy(judge.made(to_pixels(model.render(states))))

        clean, generator = states_of(model, case.train[case.first][[family]])[0], torch.Generator().manual_seed(family)
        spread = (1 + levels[-1].item() ** 2) ** 0.5
        with one_thread():
            yield family, generation_rate(model, clean, returns, levels, spread, generator=generator)
