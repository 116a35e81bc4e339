import pyarrow as pa

from tests.support.report_data import record, tables
from volgrowth.records import SAMPLES
from volgrowth.report import Exhibit, NearestSample, choose_exhibits

PLAIN = {"png_bytes": 100, "variance": 0.1, "total_variation": 0.1, "mean": 0.0, "edge_density": 0.1}
BUSY = {**PLAIN, "png_bytes": 900, "total_variation": 0.9}


def samples(*records: dict[str, object]) -> pa.Table:
    return pa.Table.from_pylist(list(records), schema=SAMPLES)


def test_a_control_is_of_the_same_complexity_and_not_flagged() -> None:
    records = [record(0, memorized=True, **BUSY), record(1, memorized=True, **BUSY), record(2, **PLAIN)]
    records += [record(3, **BUSY, memorized=False), record(4, **PLAIN)]
    found = choose_exhibits(*tables(records), [0, 2], None)
    assert found == [Exhibit(0, control=3), Exhibit(2)]


def test_no_two_flagged_images_share_a_control() -> None:
    records = [record(row, memorized=row < 3, **PLAIN) for row in range(8)]
    controls = [each.control for each in choose_exhibits(*tables(records), [0, 1, 2], None)]
    assert len({*controls}) == 3
    assert {*controls} <= set(range(3, 8))


def test_near_duplicates_are_the_other_pictures_of_the_cluster() -> None:
    """Rows 0, 1 and 5 have the same pixels; 2 to 4 and 6 are three pictures like it, of which 3 and 4 are the same."""
    content = {0: 7, 1: 7, 5: 7, 2: 8, 3: 9, 4: 9, 6: 10}
    records = [record(row, cluster=0, content_hash=content[row], copies=7) for row in range(7)]
    records += [record(7, cluster=7), record(8, cluster=0, content_hash=None)]
    found = choose_exhibits(*tables(records), [5, 4, 7], None)
    assert [each.duplicates for each in found] == [(2, 3, 6), (0, 2, 6), ()]


def test_a_sample_stands_beside_the_image_it_is_nearest_to() -> None:
    """By that image's first row; of several the nearest."""
    records = [record(0), record(1, identical=0), record(2)]
    drawn = samples(
        {"number": 0, "nearest_row": 0, "distance": 2.0, "ratio": 0.5, "hit": False},
        {"number": 1, "nearest_row": 0, "distance": 0.5, "ratio": 0.1, "hit": True},
        {"number": 2, "nearest_holdout_row": 2, "distance": 0.1, "ratio": 0.1, "hit": True},
    )
    found = choose_exhibits(*tables(records), [1, 2], drawn)
    assert [each.sample for each in found] == [NearestSample(1, 0.5, True), None]


def test_an_exhibit_knows_whose_pictures_it_needs() -> None:
    assert Exhibit(3, (4, 5), 9).rows == (3, 4, 5, 9)
    assert Exhibit(3).rows == (3,)


def test_rows_without_a_picture_are_no_controls() -> None:
    nothing = dict.fromkeys(PLAIN, None)
    records = [record(0, memorized=True, **PLAIN), record(1, **nothing), record(2, status="undecodable", **nothing)]
    assert choose_exhibits(*tables(records), [0], None) == [Exhibit(0)]
    assert choose_exhibits(*tables([]), [], None) == []
