import numpy as np

from volgrowth.analysis.verification.returns import DRAWS, LEVELS, ReturnTargets, return_shares, returns_table


def test_an_image_returns_where_its_decoded_versions_hit_it_or_a_copy_of_it():
    targets = ReturnTargets(np.array([3]), np.array([1]))
    identical = np.array([0, 1, 2, 0])  # row 3 is a copy of row 0
    hit = np.full((2, len(LEVELS), DRAWS), -1)
    hit[0, :2] = 0
    hit[0, 2, 0] = 0
    hit[1, 0, :2] = 1
    hit[1, 1] = 0  # another image
    table = returns_table(targets, identical, hit.ravel())
    assert table["row"].to_pylist() == [3] * len(LEVELS) + [1] * len(LEVELS)
    assert table["matched_row"].to_pylist() == [1] * len(LEVELS) + [3] * len(LEVELS)
    shares = return_shares(table)
    assert shares is not None
    assert shares["images"] == 1
    assert shares["flagged"][:4] == [1, 1, 1 / DRAWS, 0]
    assert shares["controls"][:2] == [2 / DRAWS, 0]


def test_there_are_no_shares_without_targets():
    nobody = ReturnTargets(np.array([], int), np.array([], int))
    assert return_shares(returns_table(nobody, np.array([0]), np.array([], int))) is None
