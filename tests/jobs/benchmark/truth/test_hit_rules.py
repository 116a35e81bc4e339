"""Hit rules on altered copies: what is compared, and what counts as found."""

from collections.abc import Callable

import numpy as np
import pytest

from jobs.benchmark.truth.hit_rules import DISTANCES, Nearest, Trial, _rows, by_look, by_pixels, ratios
from volgrowth.audit.sampling.hits import hit_groups
from volgrowth.demo.cases import digit_images


@pytest.fixture(scope="module")
def trial() -> Trial:
    return Trial.of(digit_images()[:240]).few(20)


def test_copies_are_of_searched_images_and_held_out_ones_are_not_searched(trial: Trial) -> None:
    searched = {image.tobytes() for image in trial.images}
    assert not any(image.tobytes() in searched for image in trial.held_out)
    assert np.unique(trial.kind, return_counts=True)[1].tolist() == [20] * 6
    mirrored = trial.copies[trial.kind == "mirrored"][0]
    assert (mirrored[:, :, ::-1] == trial.images[trial.origin[trial.kind == "mirrored"][0]]).all()


@pytest.mark.parametrize("compare", [by_pixels, by_look])
def test_the_ratio_decides_as_verify_does(compare: Callable[..., Nearest], trial: Trial) -> None:
    distance, group = compare(trial.copies, trial.images)
    assert ((hit_groups(distance, group) >= 0) == (ratios((distance, group)) < 0.4)).all()


def test_recoloured_copies_are_found_by_the_perceptual_distance(trial: Trial) -> None:
    rows, allowed = _rows(trial, DISTANCES["pixels"], None)
    same, again = _rows(trial, DISTANCES["perceptual"], allowed)
    assert len(rows) == 1
    assert again == allowed
    assert int(same[0]["recoloured"]) == 100
    assert int(same[1]["cropped"]) <= int(same[0]["cropped"])
    assert float(same[1]["held-out images that hit, %"]) <= 100 * allowed
