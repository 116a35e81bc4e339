"""Altered copies: what is changed, and what is not."""

import numpy as np
import pytest

from jobs.benchmark.truth.alterations import ALTERATIONS, UNCHANGED, alter, alter_copies, family_kinds
from jobs.benchmark.truth.grouping import enlarge, group_copies
from jobs.benchmark.truth.world import KINDS
from volgrowth.demo.cases import digit_images, plant_copies


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ALTERATIONS)
def test_an_altered_image_is_near_to_the_image_or_its_mirror_image(kind, channels):
    image = np.repeat(enlarge(digit_images()[:1]), channels, 0).reshape(channels, 32, 32)
    altered = alter(image, kind, np.random.default_rng(0))
    assert altered.shape == image.shape
    assert altered.dtype == np.uint8
    assert (altered != image).any()
    like = image[..., ::-1] if kind == "mirrored" else image
    assert abs(altered.astype(int) - like).mean() < 30
    assert alter(image, UNCHANGED, np.random.default_rng(0)) is image


def test_the_first_of_a_family_stays_itself_and_the_others_are_altered_each_for_itself():
    case = plant_copies(digit_images(), 1, trained=60, planting=((7, 4),), plain=6, prefix="digits", held_out=40)
    altered = alter_copies(case, KINDS, 1)
    kinds = family_kinds(case, KINDS)
    assert kinds[case.copies > 1].tolist() == list(KINDS)
    assert (kinds[case.copies == 1] == "").all()
    assert (altered.train[case.first] == case.train[case.first]).all()
    for family in np.flatnonzero(case.copies > 1):
        mine = altered.train[case.family == family]
        forms = len({image.tobytes() for image in mine})
        expected = {"unchanged": 1, "mirrored": 2}.get(str(kinds[family]))
        assert forms == expected if expected else forms > 2
    single = case.copies[case.family] == 1
    assert (altered.train[single] == case.train[single]).all()
    assert (alter_copies(case, KINDS, 1).train == altered.train).all()


def test_groups_find_copies_that_were_saved_again_and_miss_mirrored_ones():
    grouped = group_copies(enlarge(digit_images()[:200]), altered=20)
    assert (grouped.kind == "").sum() == 200
    assert {kind: int((grouped.kind == kind).sum()) for kind in ALTERATIONS} == dict.fromkeys(ALTERATIONS, 40)
    assert grouped.found("resized").mean() > 0.9
    assert grouped.found("mirrored").mean() < 0.2
    assert np.median(grouped.bits_apart("mirrored")) > 20
    assert grouped.nearest("recompressed").all()
    assert grouped.mistaken.mean() < 0.1
