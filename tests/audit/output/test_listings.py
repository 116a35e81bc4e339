"""Rows read by the frozen listing."""

import re
from typing import cast

import pytest

from volgrowth.audit.output.listings import READ_THROUGH, read_rows, stored_listing, write_listings
from volgrowth.audit.output.manifest import SCORES_FOLDER, DataInfo
from volgrowth.errors import DamagedError
from volgrowth.sources import Listing, Row, Source, SourceFile
from volgrowth.storage.store import Store


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


@pytest.mark.parametrize("name", ["/etc/photo.png", "../photo.png", "a/../../photo.png", "a/..", ".."])
def test_a_stored_listing_names_nothing_outside_of_the_data_set(tmp_path, name):
    store = Store(str(tmp_path / "out"))
    right = ["..a.png", "a../b.png", "a/.../b.png", "...", "caf\udce9.png"]
    for names, refused in ((right, False), ([*right, name], True)):
        listing = Listing.build("folder", [SourceFile(each, 1, 1) for each in names])
        write_listings(store, {SCORES_FOLDER: listing})
        again = stored_listing(store, SCORES_FOLDER, DataInfo.of("data", None, listing))
        if refused:
            with pytest.raises(DamagedError, match=re.escape(f"it names {name!r}, which is not below data")):
                list(again)
        else:
            assert [file.name for file in again] == names
