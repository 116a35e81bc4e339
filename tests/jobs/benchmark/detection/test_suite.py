"""The cases of the benchmark: their files and images."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from jobs.benchmark.detection.suite import DIGITS, SUITE, Setup, _home
from volgrowth.demo.cases import digits_case
from volgrowth.demo.training import Recipe


def test_files_of_grey_and_of_halved_colour_images(tmp_path):
    grey, colour = np.arange(2 * 16).reshape(2, 4, 4), np.arange(2 * 48).reshape(2, 4, 4, 3)
    np.savez(tmp_path / "grey.npz", x=grey.astype(np.uint8))
    np.savez(tmp_path / "colour.npz", x=colour.astype(np.uint8))
    assert (Setup("g", "grey.npz", 1, (), Recipe()).images(tmp_path)[:, 0] == grey).all()
    halved = Setup("c", "colour.npz", 1, (), Recipe(), halvings=1).images(tmp_path)
    assert halved.shape == (2, 3, 2, 2)
    assert halved[0, 1, 0, 0] == round(colour[0, :2, :2, 1].mean())


@pytest.mark.parametrize("setup", SUITE, ids=lambda setup: setup.name)
def test_a_setting_that_came_later_leaves_cached_models_their_names(setup, tmp_path):
    case = Setup("small", None, 20, (), Recipe(), plain=4, held_out=20).case(tmp_path, 1)
    before = hashlib.sha256(case.train.tobytes() + repr((setup, 2, torch.__version__)).encode()).hexdigest()[:12]
    assert _home(setup, 2, case, tmp_path).name == f"{setup.name}-2-{before}"
    altered = replace(setup, altered=("mirrored",))
    assert _home(altered, 2, case, tmp_path) != _home(setup, 2, case, tmp_path)
    assert repr(setup) == (
        f"Setup(name={setup.name!r}, file={setup.file!r}, trained={setup.trained}, planting={setup.planting}, "
        f"recipe={setup.recipe!r}, plain={setup.plain}, held_out={setup.held_out}, variation={setup.variation!r}, "
        f"halvings={setup.halvings}, samples={setup.samples})"
    )


def test_the_digits_of_the_suite_are_those_of_the_demo(tmp_path):
    of_suite, of_demo = DIGITS.case(tmp_path, seed=1), digits_case(seed=1)
    assert (of_suite.train == of_demo.train).all()
    assert (of_suite.holdout == of_demo.holdout).all()
    assert of_suite.row_names == of_demo.row_names
    assert DIGITS.recipe == Recipe()
