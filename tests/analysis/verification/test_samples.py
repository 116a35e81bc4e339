import numpy as np
import pyarrow as pa
import pytest

from volgrowth.analysis.verification.samples import count_copies, samples_table, search_groups

# apart in the last bit, which float64 does not hold
ONE, OTHER = 2**63, 2**63 + 1


def column(*hashes: int | None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(hashes, pa.uint64())])


def test_images_whose_hashes_differ_in_the_last_bit_stay_apart_beside_a_row_without_an_image():
    groups, held = search_groups(column(ONE, None, OTHER, ONE), np.array([0, 1, 2, 0]))
    assert groups.tolist() == [0, -1, 2, -1]
    assert held.tolist() == []


def test_held_out_images_are_numbered_after_the_audited_ones_and_left_out_where_they_are_audited_too():
    held = column(OTHER, None, 5, ONE, 5)
    _, groups = search_groups(column(ONE, None), np.array([0, 1]), held, np.array([0, 1, 2, 3, 2]))
    assert groups.tolist() == [2, -1, 4, -1, -1]


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
