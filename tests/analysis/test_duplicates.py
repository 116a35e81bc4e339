"""Groups of near duplicates against the leader algorithm in plain Python, and against images whose copies are known."""

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits, load_sample_images

from tests.support.tables import failed, scores
from volgrowth.analysis import duplicates
from volgrowth.analysis.distinct import identical_rows
from volgrowth.analysis.duplicates import (
    RADIUS,
    STEP,
    STEPS_APART,
    Light,
    duplicate_clusters,
    is_flat,
)
from volgrowth.analysis.parts import database
from volgrowth.demo.cases import digit_images
from volgrowth.records import SCORES
from volgrowth.sources.pixels.features import features

Look = tuple[int, int, int]


def alike(one: Look, other: Look) -> bool:
    near = (one[0] ^ other[0]).bit_count() <= RADIUS
    return near and abs(one[1] - other[1]) <= STEPS_APART and abs(one[2] - other[2]) <= STEPS_APART


def plain_leaders(looks: list[Look]) -> list[int]:
    """The leader algorithm as it is defined."""
    result: list[int] = []
    for index, look in enumerate(looks):
        found = (k for k in range(index) if result[k] == k and alike(looks[k], look))
        result.append(next(found, index))
    return result


def searched(looks: list[Look]) -> list[int]:
    """The leaders of images that are in order by their content hashes, so that a group's first row leads it."""
    hashes, brightness, contrast = np.array(looks, object).reshape(-1, 3).T
    count = len(looks)
    rows = pa.table(
        {
            "row": np.arange(count),
            "content_hash": np.arange(count, dtype=np.uint64),
            "phash": hashes.astype(np.uint64),
            "mean": brightness.astype(np.float32) * np.float32(STEP),
            "variance": (contrast.astype(np.float32) * np.float32(STEP)) ** 2,
        }
    )
    return duplicate_clusters(rows)[0].tolist()


def hashes(bits: list[int]) -> st.SearchStrategy[int]:
    """Hashes in which only these bits vary; one of none would be that of an image of one colour."""
    return st.sets(st.sampled_from(bits), min_size=1).map(lambda chosen: sum(1 << bit for bit in chosen))


few_bits = hashes([0, 1, 2, 17, 18, 33, 50, 62])
one_band = hashes(list(range(12)))
brightness, contrast = st.integers(-3, 3), st.integers(1, 4)


@pytest.mark.parametrize(("many", "batch"), [(1024, 2**17), (1, 1), (3, 5)])
@pytest.mark.parametrize("drawn", [few_bits, one_band], ids=["few bits", "one band"])
def test_leaders_are_those_of_the_definition(
    drawn: st.SearchStrategy[int], many: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few looks may share a key, and however few pairs are decided at once."""
    monkeypatch.setattr(duplicates, "MANY", many)
    monkeypatch.setattr(database, "BATCH", batch)

    @settings(max_examples=20)
    @given(st.lists(st.tuples(drawn, brightness, contrast), max_size=30, unique=True))
    def check(looks: list[Look]) -> None:
        assert searched(looks) == plain_leaders(looks)

    check()


@pytest.mark.parametrize("many", [1024, 1])
def test_no_neighbour_within_the_radius_is_missed(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 2,081 hashes within the radius of one, wherever their bits differ."""
    monkeypatch.setattr(duplicates, "MANY", many)
    centre = 0x0123_4567_89AB_CDEF
    flips = [1 << i for i in range(64)] + [1 << i | 1 << j for i in range(64) for j in range(i)]
    assert searched([(centre, 0, 5), *((centre ^ flip, 0, 5) for flip in flips)]) == [0] * 2081
    beyond = [centre ^ (7 << i) for i in range(62)]
    assert searched([(centre, 0, 5), *((other, 0, 5) for other in beyond)])[1:].count(0) == 0


def test_many_images_of_one_hash_or_one_key() -> None:
    """Half of the hashes agree in 40 bits, so that most bands of them are equal; the others in one half of them."""
    random = np.random.default_rng(0)
    half = random.integers(2**32, size=20_000, dtype=np.uint64)
    dense = random.permutation(20_000).astype(np.uint64) << np.uint64(40)
    found = np.concatenate([half, dense])
    light = Light(random.integers(-20, 21, len(found)).astype(np.int8), np.ones(len(found), np.int8))
    looks = list(zip(found.tolist(), light.brightness.tolist(), light.contrast.tolist(), strict=True))
    leader = np.array(searched(looks))
    assert (leader[leader] == leader).all()
    assert (np.bitwise_count(found ^ found[leader]) <= RADIUS).all()
    assert light.agrees(light[leader]).all()
    first = leader == np.arange(len(found))
    for some in np.split(np.flatnonzero(first)[:6000], 60):
        near = np.bitwise_count(found[some][:, None] ^ found[first]) <= RADIUS
        near &= abs(light.brightness[some][:, None] - light.brightness[first]) <= STEPS_APART
        assert near.sum() == len(some)  # itself


@pytest.mark.parametrize("lights", [1, 41])
def test_very_many_copies_are_one_image(lights: int) -> None:
    """A hundred thousand images of one hash are no more looks than lights, and copies are one image."""
    count = 100_000
    light = np.arange(count) % lights
    rows = pa.table(
        {
            "row": np.arange(count),
            "content_hash": (np.arange(count) if lights > 1 else np.zeros(count)).astype(np.uint64),
            "phash": np.full(count, 7, np.uint64),
            "mean": (light - lights // 2).astype(np.float32) * np.float32(STEP),
            "variance": np.full(count, 0.25, np.float32),
        }
    )
    cluster, copies = duplicate_clusters(rows)
    assert copies.max() >= count // (lights // 3 + 1)
    assert 41 / 5 * (lights > 1) <= len(np.unique(cluster)) <= (lights + 2) // 3


# of rows: content decides the look; None has no image, 9 is flat
contents = st.lists(st.sampled_from([None, *range(10)]), max_size=25)
LOOKS = {k: {"phash": (2 << k) - 1, "mean": 0.0, "variance": 0.25} for k in range(10)}
LOOKS[5] |= {"mean": 0.3}
LOOKS[9] |= {"phash": 0, "variance": 0.0}


def table(rows: list[int | None]) -> pa.Table:
    return scores(*[failed() if k is None else {"content_hash": 100 + k * 7919 % 101, **LOOKS[k]} for k in rows])


def partition(numbers: np.ndarray) -> set[frozenset[int]]:
    groups = defaultdict(set)
    for row, number in enumerate(numbers.tolist()):
        groups[number].add(row)
    return {frozenset(group) for group in groups.values()}


@settings(max_examples=20)
@given(contents, st.randoms(use_true_random=False))
def test_groups_do_not_depend_on_the_order_of_rows(rows: list[int | None], random: Any) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    before = partition(duplicate_clusters(table(rows))[0])
    after = partition(duplicate_clusters(table([rows[k] for k in order]))[0])
    assert {frozenset(order[k] for k in group) for group in after} == before


@settings(max_examples=20)
@given(contents)
def test_a_group_is_named_by_its_smallest_row_and_holds_identical_images(rows: list[int | None]) -> None:
    cluster, copies = duplicate_clusters(table(rows))
    same = identical_rows(table(rows))
    for row, content in enumerate(rows):
        assert cluster[row] == min(np.flatnonzero(cluster == cluster[row]))
        assert copies[row] == (cluster == cluster[row]).sum()
        assert same[row] == (row if content is None else rows.index(content))
        assert cluster[row] == cluster[same[row]]
        if content in (None, 9):
            assert cluster[row] == same[row]


def test_a_chain_of_alike_images_is_not_one_group() -> None:
    """Hashes 0, 1, 11, 111, ...: each alike to the next two, and the most copied one takes those within its radius."""
    lengths = [0, 1, 2, 3, 4, 4, 4, 6, 7, 8]
    groups = partition(duplicate_clusters(table([*lengths]))[0])
    assert frozenset(k for k, length in enumerate(lengths) if length in (2, 3, 4, 6)) in groups
    for group in groups:
        assert max(lengths[k] for k in group) - min(lengths[k] for k in group) <= 2 * RADIUS


def test_another_light_is_another_image() -> None:
    look = {"phash": 5, "mean": 0.0, "variance": 0.25}
    rows = scores(look, {**look, "mean": 2 * STEP}, {**look, "mean": 0.4}, {**look, "variance": 0.5})
    assert sorted(duplicate_clusters(rows)[1].tolist()) == [1, 1, 2, 2]


def test_rows_have_numbers_of_their_own() -> None:
    rows = table([3, 9, 3])
    moved = rows.set_column(0, "row", pa.array([42, 41, 40], pa.int64()))
    assert identical_rows(moved).tolist() == duplicate_clusters(moved)[0].tolist() == [40, 41, 40]


def test_no_rows() -> None:
    assert [len(column) for column in (identical_rows(scores()), *duplicate_clusters(scores()))] == [0, 0, 0]


def of_images(images: list[np.ndarray]) -> pa.Table:
    rows = [{"row": row, "status": "ok", **features(pixels)} for row, pixels in enumerate(images)]
    return pa.Table.from_pylist(rows, schema=SCORES)


def noisy(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.clip(np.round(image + random.normal(0, 4, image.shape)), 0, 255).astype(np.uint8)


def brighter(image: np.ndarray, _: Any) -> np.ndarray:
    return np.clip(image.astype(int) + 8, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def digits() -> pa.Table:
    return of_images(list(digit_images()))


def test_few_different_digits_are_taken_for_copies_and_none_of_another_class(digits: pa.Table) -> None:
    cluster, copies = duplicate_clusters(digits)
    assert 0 < np.mean(copies > 1) <= 0.015
    labels = load_digits().target
    assert (labels == labels[cluster]).all()


@pytest.mark.parametrize(("change", "found"), [(noisy, 0.85), (brighter, 0.85)])
def test_copies_of_digits_are_found(digits: pa.Table, change: Any, found: float) -> None:
    random = np.random.default_rng(0)
    changed = of_images([change(image, random) for image in digit_images()[:400]])
    moved = changed.set_column(0, "row", pa.array(np.arange(10_000, 10_400)))
    cluster, _ = duplicate_clusters(pa.concat_tables([digits, moved]))
    assert np.mean(cluster[-400:] == cluster[:400]) >= found


def crops() -> list[np.ndarray]:
    """24 patches of two photographs, (3, 128, 128)."""
    photographs = [image.transpose(2, 0, 1) for image in load_sample_images().images]
    corners = [(y, x) for y in range(0, 299, 128) for x in range(0, 512, 128)]
    return [np.ascontiguousarray(p[:, y : y + 128, x : x + 128]) for p in photographs for y, x in corners]


def test_photographs() -> None:
    """Copies with noise are found, and no two patches are taken for one."""
    random = np.random.default_rng(0)
    images = crops()
    cluster, _ = duplicate_clusters(of_images([*images, *(noisy(image, random) for image in images)]))
    assert len(set(cluster[: len(images)])) == len(images)
    assert np.mean(cluster[len(images) :] == cluster[: len(images)]) >= 0.85
    assert max(Counter(cluster.tolist()).values()) == 2


def test_a_row_without_an_image_does_not_change_the_groups_of_the_others() -> None:
    """Two images have hashes that are one as float64, which NumPy makes of a column with a null: the smaller leads."""
    content = [2**63 + 1, 2**63 + 2, 2**63 + 2**20]
    looks = [0b0110, 0b0000, 0b1001 << 32]  # the first is alike to the second, the second to the third
    shown = [
        {"content_hash": hash_, "phash": look | 1 << 40, "mean": 0.0, "variance": 0.25}
        for hash_, look in zip(content, looks, strict=True)
    ]
    alone, _ = duplicate_clusters(scores(*shown))
    beside, _ = duplicate_clusters(scores(*shown, failed()))
    assert alone.tolist() == [0, 0, 2]
    assert beside.tolist() == [0, 0, 2, 3]


def test_what_is_of_one_colour() -> None:
    """Gradients and colours of one brightness have no structure in their hash either, and are not."""
    shape = np.zeros((3, 32, 32), np.uint8)
    blue = shape + np.array([10, 60, 200], np.uint8)[:, None, None]
    speckled = blue.copy()
    speckled[2, ::5, ::5] += 1
    gradient = shape + np.arange(0, 64, 2, dtype=np.uint8)
    halves = shape + np.array([200, 40, 40], np.uint8)[:, None, None]
    halves[:, :, 16:] = np.array([0, 142, 40], np.uint8)[:, None, None]
    dot = blue.copy()
    dot[:, 12:15, 12:15] = 255
    rows = of_images([shape, blue, speckled, gradient, halves, dot])
    assert rows["phash"].to_numpy()[[3, 4]].tolist() == [1 << 63] * 2
    assert is_flat(rows).tolist() == [True] * 3 + [False] * 3
    assert not is_flat(scores(failed())).any()
