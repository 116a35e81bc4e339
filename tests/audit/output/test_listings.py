"""Rows read by the frozen listing."""

from typing import cast

from volgrowth.audit.output.listings import READ_THROUGH, read_rows
from volgrowth.sources import Row, Source


class Recorded:
    """A source that keeps what ranges it was asked for."""

    def __init__(self):
        self.ranges = []

    def read(self, start, stop):
        self.ranges.append((start, stop))
        return (Row(row, f"id-{row}", "", None) for row in range(start, stop))


def test_rows_that_lie_near_to_one_another_are_read_at_once():
    far = 3 + READ_THROUGH
    for rows, ranges in (([], []), ([5], [(5, 6)]), ([0, 3, far, 100, 101], [(0, far + 1), (100, 102)])):
        source = Recorded()
        assert [row.row for row in read_rows(cast(Source, source), rows)] == rows
        assert source.ranges == ranges
