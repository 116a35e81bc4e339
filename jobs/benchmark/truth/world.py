"""The bench's cases as users have them, what presets find there, and whether a family is found by any of its members.

These cases have a page and a command of their own, docs/truth.md, beside the bench's six, whose tables stay as they
are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jobs.benchmark.detection.audited_presets import Contestant
from jobs.benchmark.detection.bench_tables import case_row, preset_rows, say_left_out
from jobs.benchmark.detection.compared_scores import Score
from jobs.benchmark.detection.experiment import Bench, Result, mean_over_seeds, result_table, run_bench
from jobs.benchmark.detection.subjects import Subject, is_understood
from jobs.benchmark.detection.suite import Setup, is_trained
from jobs.benchmark.truth.alterations import ALTERATIONS, UNCHANGED
from jobs.benchmark.truth.exposures import exposure_rows
from jobs.benchmark.truth.members import member_rows
from jobs.benchmark.truth.training import Autoencoder, Practice
from jobs.experiments import Outcome
from volgrowth.analysis.duplicates import is_flat
from volgrowth.demo.cases import DIGITS_PLANTING
from volgrowth.demo.training import Recipe

# At most 25 minutes of two cores, for images of 32 x 32 in colour. A network that predicts noise got the mean colour of
# a picture wrong at high noise levels, where it is a thousandth of the loss: in as many steps it made nothing but
# saturated pictures. One that predicts the velocity learns the colour itself there. Few families in many copies: 3,000
# steps that showed each of ten images 4,400 times reproduced two of them. Latents take the same images, so that growth
# in them can be compared with growth in pixels.
COLOUR_RECIPE = Recipe(channels=(16, 32, 64, 64), steps=11_000, batch=16, learning_rate=1e-3)
COLOUR_PREDICTION = "v_prediction"
LATENT_RECIPE = Recipe(channels=(64, 64), steps=6000, batch=32)
# At twice the learning rate two trainings broke down near its peak, in float32 as well, and one also with this limit on
# the gradient, later: the loss doubled within a hundred steps and stayed high, and the model made noise.
COLOUR_CLIP = 1.0
COLOUR_PLANTING = ((12, 200), (6, 100), (6, 40))
KINDS = (UNCHANGED, *ALTERATIONS)
# images from which on detection is judged
FEW = 10
EMOJI, PHOTOGRAPHS = "emoji32.npz", "photos32.npz"

WORLD = (
    Setup(
        "photos-exact",
        PHOTOGRAPHS,
        624,
        COLOUR_PLANTING,
        COLOUR_RECIPE,
        plain=100,
        held_out=1000,
        samples=1000,
        prediction=COLOUR_PREDICTION,
        mixed=True,
        clip=COLOUR_CLIP,
    ),
    Setup(
        "photos-latent",
        PHOTOGRAPHS,
        624,
        COLOUR_PLANTING,
        LATENT_RECIPE,
        plain=100,
        held_out=1000,
        samples=1000,
        latent=Autoencoder(),
        mixed=True,
    ),
    Setup(
        "emoji-natural",
        EMOJI,
        600,
        (),
        replace(COLOUR_RECIPE, steps=6000),
        plain=50,
        held_out=1000,
        samples=1000,
        prediction=COLOUR_PREDICTION,
        mixed=True,
        clip=COLOUR_CLIP,
    ),
    Setup(
        "photos-altered",
        PHOTOGRAPHS,
        614,
        ((2 * len(KINDS), 250),),
        replace(COLOUR_RECIPE, steps=9000),
        plain=100,
        held_out=1000,
        samples=1000,
        altered=KINDS,
        prediction=COLOUR_PREDICTION,
        mixed=True,
        clip=COLOUR_CLIP,
    ),
    Setup("digits-augmented", None, 900, DIGITS_PLANTING, Recipe(), practice=Practice(augmented=True)),
    Setup("digits-averaged", None, 900, DIGITS_PLANTING, Recipe(), practice=Practice(average=0.99)),
    # Very many images in families of few to very many copies, so that it is seen how many copies it takes.
    Setup(
        "hanzi-families",
        "hanzi12.npz",
        19_992,
        ((12, 400), (12, 250), (12, 150), (12, 75), (40, 50), (60, 20), (60, 10), (60, 5), (100, 2)),
        Recipe(steps=7000),
        plain=8,
        held_out=4000,
    ),
)


def measure_world(
    setups: Sequence[Setup],
    seeds: Sequence[int],
    data: Path,
    output: Path,
    scores: Sequence[Score | Contestant],
    *,
    cached_only: bool = False,
) -> Outcome:
    """Run presets and scores on the cases, and write all numbers to `output`/truth.parquet; say so if none is there."""
    asked = [(setup, seed) for setup in setups for seed in seeds]
    if cached_only and not any(is_trained(setup, seed, data, output / "models") for setup, seed in asked):
        return world_outcome(Bench([], [], [(setup.name, seed) for setup, seed in asked]))
    found = run_bench(setups, seeds, data, output, scores, cached_only=cached_only)
    pq.write_table(result_table(found.results), output / "truth.parquet")
    return world_outcome(found)


def world_outcome(found: Bench) -> Outcome:
    """Return the tables of the page, and what they say."""
    members = [row for subject in found.subjects for row in member_rows(subject)]
    return Outcome(
        [*reproduction_sentences(found), *say_left_out(found)],
        {
            "presets": [row for subject in found.subjects for row in _preset_rows(found.results, subject)],
            "cases": [case_row(subject) for subject in found.subjects],
            "exposures": [row for subject in found.subjects for row in exposure_rows(subject)],
            "members": members,
        },
    )


def _preset_rows(results: Sequence[Result], subject: Subject) -> Iterator[dict[str, Any]]:
    """Yield what the evidence of each preset finds on one model, the means over draws."""
    model = subject.trained.setup.name, subject.trained.seed
    mine = mean_over_seeds([result for result in results if (result.case, result.seed) == model])
    for row in preset_rows(mine, model[0]):
        yield {"case": row.pop("case"), "seed": model[1], **row}


def reproduction_sentences(found: Bench) -> list[str]:
    """Say of each model in how many samples and images its memory shows, and where nothing can be judged."""
    sentences = []
    for subject in found.subjects:
        setup, positive = subject.trained.setup, subject.positive
        where = f"{setup.name} with seed {subject.trained.seed}"
        hits = int(subject.truth.hits[positive].sum())
        count, single = int(positive.sum()), int((positive & ~subject.planted).sum())
        images = "1 image" if count == 1 else f"{count} images"
        said = f"{where}: {hits:,} of {len(subject.trained.samples):,} samples are copies of {images}"
        if single:
            said += f", {single} of them trained on once"
        if plain := int((positive & is_flat(subject.described)[: len(positive)]).sum()):
            said += f", {plain} of one colour"
        if not positive.any():
            said += ", so that detection cannot be judged there, and only false flags can"
            said += "" if is_understood(subject) else "; an audit would refuse this model: its training broke down"
        elif positive.sum() < FEW:
            said += f", fewer than the {FEW} from which on detection is judged"
        sentences.append(f"{said}.")
    return sentences
