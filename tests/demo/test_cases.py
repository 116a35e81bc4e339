import io
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from volgrowth.demo.cases import (
    LabelledSet,
    Variation,
    digit_images,
    plain_images,
    plant_copies,
    to_tensor,
    write_image_parquet,
)

PLANTING = ((3, 10), (2, 4))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return digit_images()[:400]


def make(images: np.ndarray, variation: Variation = "exact", seed: int = 1, **settings: Any) -> LabelledSet:
    asked = {"trained": 200, "planting": PLANTING, "plain": 30, "prefix": "digit", **settings}
    return plant_copies(images, seed, variation=variation, **asked)


def test_families_have_the_copies_that_were_planted(images):
    case = make(images)
    assert sorted(case.copies.tolist(), reverse=True)[:6] == [10, 10, 10, 4, 4, 1]
    assert len(case.train) == case.copies.sum() == 195 + 30 + 38
    assert len(case.names) == len(set(case.names.tolist())) == 230
    assert sum(name.startswith("plain") for name in case.names) == 30


@pytest.mark.parametrize("variation", ["exact", "shifted", "near"])
def test_first_is_a_row_of_each_family_and_row_names_say_which_copy(images, variation):
    case = make(images, variation)
    assert (case.family[case.first] == np.arange(len(case.names))).all()
    names = case.row_names
    assert len(set(names)) == len(case.train)
    assert [names[row] for row in case.first] == [f"{name}-0" for name in case.names]


def test_exact_copies_are_their_family_s_image(images):
    case = make(images)
    assert (case.train == case.train[case.first][case.family]).all()


@pytest.mark.parametrize("variation", ["shifted", "near"])
def test_every_second_planted_family_varies_and_keeps_the_image_as_its_first_row(images, variation):
    case, exact = make(images, variation), make(images)
    originals = exact.train[exact.first]
    assert (case.train[case.first] == originals).all()
    differs = (case.train != originals[case.family]).any((1, 2, 3))
    varied = np.unique(case.family[differs])
    assert set(varied.tolist()) <= set(np.flatnonzero(case.copies > 1)[1::2].tolist())
    assert len(varied) == 2  # of five planted ones


def test_shifted_copies_are_moved_by_at_most_a_pixel(images):
    case = make(images, "shifted")
    first = case.train[case.first]
    for row, family in enumerate(case.family):
        padded = np.pad(first[family], ((0, 0), (1, 1), (1, 1)), mode="edge")
        moved = [padded[:, down : down + 8, right : right + 8] for down in range(3) for right in range(3)]
        assert any((case.train[row] == each).all() for each in moved)


def test_near_copies_stay_near(images):
    case = make(images, "near")
    distance = np.abs(case.train.astype(float) - case.train[case.first][case.family]).mean((1, 2, 3))
    assert distance.max() < 40
    assert distance.max() > 1


@pytest.mark.parametrize("variation", ["exact", "shifted", "near"])
def test_no_held_out_image_is_trained_on(images, variation):
    case = make(np.concatenate([images, images[:50]]), variation)
    seen = {image.tobytes() for image in case.train}
    assert not any(image.tobytes() in seen for image in case.holdout)
    assert len(case.holdout) == len(case.holdout_names)
    assert sum(name.startswith("plain") for name in case.holdout_names) > 20
    assert not set(case.holdout_names.tolist()) & set(case.names.tolist())


def test_held_out_images_can_be_limited(images):
    assert len(make(images, held_out=40).holdout) <= 40 + 30


@pytest.mark.parametrize("variation", ["exact", "shifted", "near"])
def test_a_case_is_its_seed(images, variation):
    one, again, other = (make(images, variation, seed) for seed in (1, 1, 2))
    for name in ("train", "family", "names", "holdout", "holdout_names"):
        assert (getattr(one, name) == getattr(again, name)).all()
    assert one.train.shape != other.train.shape or (one.train != other.train).any()


def test_plain_images_are_flat_gradients_and_faint_in_turn(images):
    plain = plain_images(images, 9, np.random.default_rng(0)).astype(float)
    assert (plain[0::3].std((1, 2, 3)) == 0).all()
    assert (plain[1::3].std((1, 2, 3)) > 0).all()
    assert (plain.std((1, 2, 3)) < images[:50].astype(float).std((1, 2, 3)).mean()).all()


def test_colour_images_are_cases_too():
    images = np.random.default_rng(0).integers(0, 255, (60, 3, 8, 8), dtype=np.uint8)
    case = make(images, "shifted", trained=30, planting=((2, 5),), plain=6)
    assert case.train.shape[1:] == (3, 8, 8)
    assert case.holdout.shape[1:] == (3, 8, 8)


def test_parquet_holds_the_pixels_and_tensors_the_range(images, tmp_path):
    write_image_parquet(tmp_path / "images.parquet", images[:3], ["a", "b", "c"])
    rows = pq.read_table(tmp_path / "images.parquet").to_pylist()
    assert [row["name"] for row in rows] == ["a", "b", "c"]
    assert (np.array(Image.open(io.BytesIO(rows[1]["image"]["bytes"]))) == images[1, 0]).all()
    tensor = to_tensor(np.array([[[[0, 255]]]], np.uint8))
    assert tensor.tolist() == [[[[-1.0, 1.0]]]]
