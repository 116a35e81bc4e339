"""The cases of the benchmark: their files and images."""

import numpy as np

from jobs.benchmark.detection.suite import DIGITS, Setup
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


def test_the_digits_of_the_suite_are_those_of_the_demo(tmp_path):
    of_suite, of_demo = DIGITS.case(tmp_path, seed=1), digits_case(seed=1)
    assert (of_suite.train == of_demo.train).all()
    assert (of_suite.holdout == of_demo.holdout).all()
    assert of_suite.row_names == of_demo.row_names
    assert DIGITS.recipe == Recipe()
