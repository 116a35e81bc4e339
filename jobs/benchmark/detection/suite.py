"""The cases of the benchmark: their images, the copies planted in them, and the training of their models.

Scikit-learn's digits are always there. Other sets are .npz files with an array `x` of uint8 images, (n, H, W) or
(n, H, W, 3), in a folder given by the caller; cases whose file is missing are left out. Trained models and samples
are cached.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.benchmark.truth.alterations import UNCHANGED, alter_copies
from jobs.benchmark.truth.training import (
    Autoencoder,
    Practice,
    augmented_forms,
    train_as_users_do,
    train_in_latents,
)
from jobs.experiments import say
from volgrowth.analysis.verification.proof import Reproduced
from volgrowth.audit.sampling.drawing import draw_samples
from volgrowth.demo.cases import DIGITS_PLANTING, LabelledSet, Planting, Variation, digit_images, plant_copies
from volgrowth.demo.training import Recipe
from volgrowth.demo.truth import find_reproduced
from volgrowth.errors import UsageError
from volgrowth.models import load_model


@dataclass(frozen=True)
class Setup:
    """The settings of a case, apart from its seed: its images, what is planted, and how a model is trained on them.

    Attributes:
        name: of the case.
        file: of the images; None for scikit-learn's digits.
        trained, planting, plain, held_out, variation: as `plant_copies` takes them.
        recipe: of the training.
        halvings: how often the images' sides are halved.
        samples: number of samples that tell what the model reproduces.
        latent: the autoencoder in whose latents the model is trained; None for a model of pixels.
        practice: what users add to the training.
        prediction: what the network of a model of pixels predicts: `epsilon` or `v_prediction`.
        altered: how planted families are altered, in turn (`jobs.benchmark.truth.alterations`); () for no alteration.
        mixed: True to train in mixed precision: the network multiplies in bfloat16, loss and weights are in float32.
        clip: greatest norm of the gradient in training; None for no limit.
    """

    name: str
    file: str | None
    trained: int
    planting: Planting
    recipe: Recipe
    plain: int = 150
    held_out: int | None = None
    variation: Variation = "exact"
    halvings: int = 0
    samples: int = 3000
    altered: tuple[str, ...] = field(default=(), repr=False)
    latent: Autoencoder | None = field(default=None, repr=False)
    practice: Practice = field(default=Practice(), repr=False)
    prediction: str = field(default="epsilon", repr=False)
    mixed: bool = field(default=False, repr=False)
    clip: float | None = field(default=None, repr=False)

    @property
    def key(self) -> str:
        """Text that changes with every setting.

        Settings that `repr` does not show came after models had been cached. They are in it only where they are set,
        so that those models keep their names.
        """
        later = [(each.name, getattr(self, each.name), each.default) for each in fields(self) if not each.repr]
        given = {name: value for name, value, default in later if value != default}
        return f"{self!r} {given}" if given else repr(self)

    @property
    def varies(self) -> bool:
        """True if planted copies differ from their image."""
        return self.variation != "exact" or any(kind != UNCHANGED for kind in self.altered)

    def images(self, folder: Path) -> np.ndarray:
        """Return the images that the case is made of, (n, C, H, W) uint8."""
        if self.file is None:
            return digit_images()
        with np.load(folder / self.file) as archive:
            images = archive["x"]
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        for _ in range(self.halvings):
            n, channels, height, width = images.shape
            blocks = images.reshape(n, channels, height // 2, 2, width // 2, 2)
            images = np.round(blocks.mean((3, 5))).astype(np.uint8)
        return images

    def case(self, folder: Path, seed: int) -> LabelledSet:
        """Return the labelled training set with this seed, made of the images in `folder`."""
        case = plant_copies(
            self.images(folder),
            seed,
            trained=self.trained,
            planting=self.planting,
            plain=self.plain,
            prefix=self.name.split("-")[0],
            held_out=self.held_out,
            variation=self.variation,
        )
        return alter_copies(case, self.altered, seed) if self.altered else case

    def train(self, images: np.ndarray, model: Path, seed: int, weights: np.ndarray | None = None) -> None:
        """Train a model of this case, and save it as a pipeline.

        Args:
            images: to train on, (n, C, H, W) uint8.
            model: folder of the pipeline.
            seed: of weights, batches and noise.
            weights: how often each image is drawn, in relation to the others, (n,); None for all alike.
        """
        further: dict[str, Any] = {"mixed": self.mixed, "drawn": weights, "clip": self.clip}
        if self.latent:
            train_in_latents(images, model, seed, self.recipe, self.latent, **further)
        else:
            train_as_users_do(images, model, seed, self.recipe, self.practice, self.prediction, **further)


DIGITS = Setup("digits-exact", None, 900, DIGITS_PLANTING, Recipe())
SUITE = (
    DIGITS,
    Setup("digits-shifted", None, 900, DIGITS_PLANTING, Recipe(), variation="shifted"),
    Setup("digits-near", None, 900, DIGITS_PLANTING, Recipe(), variation="near"),
    Setup(
        "mnist-exact",
        "mnist12.npz",
        1500,
        ((15, 100), (15, 50), (10, 20), (10, 8)),
        Recipe(steps=4000),
        held_out=2500,
    ),
    Setup(
        "emoji-exact",
        "emoji32.npz",
        1200,
        ((15, 100), (15, 50), (10, 20)),
        Recipe(channels=(32, 64), steps=6000, batch=32),
        held_out=2500,
        halvings=1,
    ),
    # as users have it: very many images of which few are planted, and few held out
    Setup(
        "hanzi-large",
        "hanzi12.npz",
        19_992,
        ((15, 300), (10, 150)),
        Recipe(steps=6000),
        plain=8,
        held_out=392,
    ),
)


def choose_cases(folder: Path, names: Sequence[str] | None, suite: Sequence[Setup] = SUITE) -> list[Setup]:
    """Return the named cases, or all whose images are in `folder`; cases left out for want of a file are said.

    Args:
        folder: the image sets.
        names: of cases; None for all.
        suite: the cases that there are.

    Raises:
        UsageError: a name that is unknown, or whose file is missing.
    """
    known = {setup.name: setup for setup in suite if setup.file is None or (folder / setup.file).exists()}
    made = f"`python jobs/benchmark.py images --output {folder}` makes the image sets"
    for name in names or ():
        if name not in known:
            raise UsageError(f"case {name!r} is not to be had: expected one of {', '.join(known)}; {made}")
    for setup in suite:
        if not names and setup.name not in known:
            say(f"left out: {setup.name}, since {setup.file} is not in {folder}; {made}")
    return [known[name] for name in names or known]


@dataclass(frozen=True)
class Trained:
    """A case, the folder of the model trained on it, and samples of that model, (samples, C, H, W) uint8."""

    setup: Setup
    seed: int
    case: LabelledSet
    model: Path
    samples: np.ndarray

    def truth(self) -> Reproduced:
        """Return which families the samples reproduce; a family is hit in any form that the model was shown.

        Held-out images, the null, are hit in as many forms.
        """
        case = self.case
        if not self.setup.practice.augmented:
            return find_reproduced(self.samples, case.train, case.holdout, case.family)
        shown, held = augmented_forms(case.train), augmented_forms(case.holdout)
        families = (
            np.resize(of, len(forms)) for of, forms in ((case.family, shown), (np.arange(len(case.holdout)), held))
        )
        return find_reproduced(self.samples, shown, held, *families)


def train_or_load(setup: Setup, seed: int, folder: Path, cache: Path, say: Callable[[str], None]) -> Trained:
    """Train the model of a case and draw its samples, or take both from the cache, where their settings name them."""
    case = setup.case(folder, seed)
    home = _home(setup, seed, case, cache)
    model, samples = home / "model", home / "samples.npy"
    if not (model / "model_index.json").exists():
        say(f"training {setup.name}, seed {seed}: {setup.recipe.steps} steps on {len(case.train)} images")
        setup.train(case.train, model, seed)
    if not samples.exists():
        say(f"sampling {setup.name}, seed {seed}: {setup.samples} images")
        np.save(samples, draw_samples(load_model(str(model)), range(setup.samples), seed=0))
    return Trained(setup, seed, case, model, np.load(samples))


def models_of(
    setups: Sequence[Setup],
    seeds: Sequence[int],
    folder: Path,
    cache: Path,
    left_out: list[str],
    *,
    cached_only: bool = False,
) -> Iterator[Trained]:
    """Yield the model of each case and seed, by `train_or_load`.

    Args:
        setups: the cases.
        seeds: seeds of each case.
        folder: of the image sets.
        cache: folder of trained models.
        left_out: gets a sentence for each model that is left out.
        cached_only: leave out models that are not in the cache.
    """
    for setup in setups:
        for seed in seeds:
            if cached_only and not is_trained(setup, seed, folder, cache):
                left_out.append(f"Left out, since its model is not trained: {setup.name} with seed {seed}.")
                continue
            yield train_or_load(setup, seed, folder, cache, say)


def is_trained(setup: Setup, seed: int, folder: Path, cache: Path) -> bool:
    """Return whether a case's model and its samples are in the cache."""
    home = _home(setup, seed, setup.case(folder, seed), cache)
    return (home / "model" / "model_index.json").exists() and (home / "samples.npy").exists()


def _home(setup: Setup, seed: int, case: LabelledSet, cache: Path) -> Path:
    settings = f"({setup.key}, {seed!r}, {torch.__version__!r})".encode()
    return cache / f"{setup.name}-{seed}-{hashlib.sha256(case.train.tobytes() + settings).hexdigest()[:12]}"
