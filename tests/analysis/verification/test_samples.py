import numpy as np
import pyarrow as pa
import pytest

from volgrowth.analysis.verification.samples import count_copies, samples_table, search_groups

# apart in the last bit, which float64 does not hold
ONE, OTHER = 2**63, 2**63 + 1


def rows(hashes: list[int | None], identical: list[int]) -> pa.Table:
    columns = {"row": range(len(hashes)), "identical": identical, "content_hash": pa.array(hashes, pa.uint64())}
    return pa.table(columns)


def test_images_whose_hashes_differ_in_the_last_bit_stay_apart_beside_a_row_without_an_image() -> None:
    table = rows([ONE, None, OTHER, ONE], [0, 1, 2, 0])
    numbers, held = search_groups([table.slice(0, 3), table.slice(3)], 4)
    assert numbers.of(0, 4).tolist() == [0, -1, 2, -1]
    assert (numbers.of(1, 3).tolist(), numbers.count) == ([-1, 2], 2)
    assert (held.of(0, 0).tolist(), held.count) == ([], 0)


def test_held_out_images_are_numbered_after_the_audited_ones_and_left_out_where_they_are_audited_too() -> None:
    held = rows([OTHER, None, 5, ONE, 5], [0, 1, 2, 3, 2])
    _, numbers = search_groups([rows([ONE, None], [0, 1])], 2, held)
    assert numbers.of(0, 5).tolist() == [2, -1, 4, -1, -1]


def test_a_sample_is_described_by_its_nearest_image():
    distance = np.array([[127.5, 255.0], [255.0, np.inf], [np.inf, np.inf]])
    found = samples_table(distance[:2], np.array([3, 10]), np.array([3, -1]), 10).to_pylist()
    assert [record["nearest_row"] for record in found] == [3, None]
    assert [record["nearest_holdout_row"] for record in found] == [None, 0]
    assert [record["distance"] for record in found] == [1, 2]
    assert found[0]["ratio"] == pytest.approx(2 / 3)
    assert [record["hit"] for record in found] == [True, False]


def test_copies_are_counted_and_the_distance_is_that_to_the_next_image():
    distance = np.array([[12.75, 255.0], [127.5, 255.0]])
    assert count_copies(distance, np.array([3, -1])) == {"copies": 1, "distance": pytest.approx(1.5)}
