"""Conditional cases: images planted under one condition, under several, under the wrong one; conditions of many images.

The unit is a pair of an image and the class or caption that it was trained under. `LabelledSet.family` numbers the
pairs, so that a pair is what a family is elsewhere: its copies are the rows of that image under that condition.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jobs.benchmark.truth.captions import captioned
from volgrowth.demo.cases import LabelledSet
from volgrowth.demo.training import Recipe
from volgrowth.numerics.denoisers import Condition

CLASSES = 10
# the label that stands for no class
NO_CLASS = CLASSES

ONE, SEVERAL, WRONG, SHARED, SINGLE = "one condition", "several", "the wrong one", "shared", "once"


@dataclass(frozen=True)
class PairSetup:
    """The settings of a conditional case, apart from its seed.

    Attributes:
        name: of the case.
        file: of the images, with their labels `y` or the names `glyph` of their glyphs.
        kind: of the conditions: `class` or `caption`.
        recipe: of the training.
        planted: images that are planted in each role.
        copies: rows of each planted image.
        spread: conditions that an image in the role `several` is planted under.
        shared: conditions under which several planted images stand; 0 for none.
        singles: images that are trained on once.
        held_out: the most images that are held out.
        asked: single images, and held-out ones, whose condition is sampled; all of them where conditions are classes.
        samples: number of samples under each condition.
        steps: of the sampler.
        guidance: scale of the guided samples.
        dropped: share of the rows that a step of the training sees without their condition.
        roles: in which images are planted, beside those that share a condition.
        base: the case whose model is fine-tuned by low-rank weights, on images that it held out; None for a new model.
    """

    name: str
    file: str
    kind: str
    recipe: Recipe
    planted: int
    copies: int
    spread: int
    shared: int
    singles: int
    held_out: int
    asked: int
    samples: int
    steps: int = 25
    guidance: float = 3.0
    dropped: float = 0.1
    roles: tuple[str, ...] = field(default=(ONE, SEVERAL, WRONG), repr=False)
    base: "PairSetup | None" = field(default=None, repr=False)

    @property
    def key(self) -> str:
        """Text that changes with every setting; those that came later are in it only where they are set."""
        return repr(self) + (f" {self.roles} {self.base}" if self.base else "")

    def case(self, folder: Path, seed: int) -> "PairCase":
        """Return the labelled training set with this seed, made of the images in `folder`."""
        if self.base:
            known = self.base.case(folder, seed)
            return plant_pairs(self, known.labelled.holdout, known.holdout_condition, seed)
        with np.load(folder / self.file) as archive:
            images = archive["x"]
            own = archive["y" if self.kind == "class" else "glyph"]
        if self.kind == "caption":
            images, own = captioned(images, own)
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        return plant_pairs(self, np.ascontiguousarray(images), own, seed)


@dataclass(frozen=True)
class PairCase:
    """A labelled set whose families are pairs of an image and a condition.

    Attributes:
        labelled: the set; `family` numbers the pairs.
        image: number of the image of each pair, (pairs,).
        condition: of each pair, (pairs,) of labels or captions.
        role: of each pair, (pairs,): one of the roles above.
        holdout_condition: of each held-out image, (m,).
        asked: the pairs whose condition is sampled, (pairs,) bool.
        holdout_asked: the held-out images whose condition is sampled, (m,) bool.
    """

    labelled: LabelledSet
    image: np.ndarray
    condition: np.ndarray
    role: np.ndarray
    holdout_condition: np.ndarray
    asked: np.ndarray
    holdout_asked: np.ndarray

    @property
    def row_image(self) -> np.ndarray:
        """Number of the image of each training row, (n,)."""
        return self.image[self.labelled.family]

    @property
    def conditions(self) -> list[Condition]:
        """The conditions that are sampled, each once."""
        found = np.concatenate([self.condition[self.asked], self.holdout_condition[self.holdout_asked]])
        return list(dict.fromkeys(found.tolist()))


@dataclass(frozen=True)
class _Planted:
    """An image by its number in the file, the role it is planted in, and the copies of each of its conditions."""

    image: int
    role: str
    copies: dict[Condition, int]


def plant_pairs(setup: PairSetup, images: np.ndarray, own: np.ndarray, seed: int) -> PairCase:
    """Deal images (n, C, H, W) with their own conditions (n,) to the roles, and the rest to the held-out set."""
    random = np.random.default_rng(seed)
    order = [int(row) for row in random.permutation(len(images))]
    planted = list(_plant(setup, order, own, random))
    used = {each.image for each in planted}
    held = np.array([row for row in order if row not in used][: setup.held_out])
    pairs = [(each, condition, copies) for each in planted for condition, copies in each.copies.items()]
    copies = np.array([number for _, _, number in pairs])
    family = random.permutation(np.repeat(np.arange(len(pairs)), copies))
    numbers = {each.image: number for number, each in enumerate(planted)}
    role = np.array([each.role for each, _, _ in pairs])
    asked = np.ones(len(pairs), bool) if setup.kind == "class" else _asked(role, setup.asked)
    return PairCase(
        LabelledSet(
            train=images[[each.image for each, _, _ in pairs]][family],
            family=family,
            names=np.array([f"{each.role} {each.image} under {condition}" for each, condition, _ in pairs]),
            holdout=images[held],
            holdout_names=np.array([f"held out {row}" for row in held]),
        ),
        image=np.array([numbers[each.image] for each, _, _ in pairs]),
        condition=np.array([condition for _, condition, _ in pairs]),
        role=role,
        holdout_condition=own[held],
        asked=asked,
        holdout_asked=np.arange(len(held)) < (len(held) if setup.kind == "class" else setup.asked),
    )


def _plant(setup: PairSetup, order: list[int], own: np.ndarray, random: np.random.Generator) -> Sequence[_Planted]:
    """Return the images of the training set, planted ones first; takes their numbers from the front of `order`."""
    each, found = setup.copies // setup.spread, list[_Planted]()
    every = np.unique(own)
    take: Callable[[int], list[int]] = lambda count: [order.pop(0) for _ in range(count)]  # noqa: E731
    for role in setup.roles:
        for image in take(setup.planted):
            if role == ONE:
                given = {_plain(own[image]): setup.copies}
            elif role == SEVERAL:
                given = {_plain(other): each for other in random.choice(every, setup.spread, replace=False)}
            else:
                given = {_plain(random.choice(every[every != own[image]])): setup.copies}
            found.append(_Planted(image, role, given))
    for _ in range(setup.shared):
        images = take(setup.planted)
        found += [_Planted(image, SHARED, {_plain(own[images[0]]): setup.copies}) for image in images]
    return [*found, *(_Planted(image, SINGLE, {_plain(own[image]): 1}) for image in take(setup.singles))]


def _asked(role: np.ndarray, singles: int) -> np.ndarray:
    """Return which pairs are sampled: planted ones, and the first of the single ones."""
    once = role == SINGLE
    return ~once | (np.cumsum(once) <= singles)


def _plain(value: np.generic) -> Condition:
    """Return a NumPy scalar as a Python one."""
    found: Condition = value.item()
    return found
