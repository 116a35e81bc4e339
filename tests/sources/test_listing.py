import gc
import hashlib
import json
import os
import pickle

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volgrowth.errors import DataError
from volgrowth.sources import Listing, SourceFile

ROWS = st.lists(st.integers(0, 4), min_size=1, max_size=12)


def files(rows, names="abcdefghijkl"):
    return [SourceFile(name, 10 * count, count, tuple(range(count))) for name, count in zip(names, rows, strict=False)]


def grown(old, new):
    return list(Listing.extended(Listing.build("folder", old), Listing.build("folder", new)))


@given(rows=ROWS, chunk=st.integers(1, 5), cuts=st.tuples(st.integers(0, 48), st.integers(0, 48)).map(sorted))
def test_entries_are_the_files_of_a_range(rows, chunk, cuts):
    listing = Listing.build("parquet", files(rows), chunk)
    start, stop = (min(cut, sum(rows)) for cut in cuts)
    expected, first = [], 0
    for file in files(rows):
        if max(start, first) < min(stop, first + file.rows):
            expected.append((file, first))
        first += file.rows
    assert list(listing.entries(start, stop)) == expected
    assert (list(listing), listing.num_files, listing.num_rows) == (files(rows), len(rows), sum(rows))


def test_a_listing_of_an_older_version_has_no_tags_and_the_same_fingerprint():
    files = [SourceFile("a", 3, 2, (), "1"), SourceFile("b", 4, 1, (), "2")]
    built = Listing.build("folder", files)
    chunks = [chunk.drop_columns(["tag"]) for chunk in built.chunks()]
    old = Listing.stored(built.describe(), chunks.__getitem__)
    assert list(built) == files
    assert list(old) == [file._replace(tag="") for file in files]
    assert Listing.build("folder", old).fingerprint == built.fingerprint


@given(rows=ROWS, chunk=st.integers(1, 5))
def test_a_stored_listing_is_the_one_that_was_built(rows, chunk):
    built = Listing.build("webdataset", files(rows), chunk)
    chunks = list(built.chunks())
    stored = Listing.stored(json.loads(json.dumps(built.describe())), chunks.__getitem__)
    assert stored.describe() == built.describe()
    assert list(stored) == list(built)
    assert list(stored.entries(0, sum(rows))) == list(built.entries(0, sum(rows)))


def test_the_fingerprint_is_of_kind_names_sizes_and_rows_however_it_is_cut():
    whole = json.dumps(["parquet", *([file.name, file.size, file.rows] for file in files([1, 0, 3]))])
    expected = "sha256:" + hashlib.sha256(whole.encode()).hexdigest()
    for chunk in (1, 2, 9):
        assert Listing.build("parquet", files([1, 0, 3]), chunk).fingerprint == expected
    assert Listing.build("folder", files([1, 0, 3])).fingerprint != expected


def test_chunks_are_loaded_when_needed_and_few_are_kept():
    built, loaded = Listing.build("folder", files([1] * 12), 1), []
    chunks = list(built.chunks())

    def load(index):
        loaded.append(index)
        return chunks[index]

    stored = Listing.stored(built.describe(), load)
    for row in (7, 7, 8, 7, 8):
        list(stored.entries(row, row + 1))
    assert loaded == [7, 8]
    list(stored.entries(0, 12))
    list(stored.entries(7, 8))
    assert loaded[-1] == 7


def test_names_that_are_not_utf_8_survive(tmp_path):
    names = [os.fsdecode(b"\xff.png"), "\U0001f600.png", "new\nline.png"]
    listing = Listing.build("folder", files([1, 1, 1], sorted(names)), 2)
    for index, chunk in enumerate(listing.chunks()):
        pq.write_table(chunk, tmp_path / f"{index}.parquet")
    stored = Listing.stored(listing.describe(), lambda index: pq.read_table(tmp_path / f"{index}.parquet"))
    assert [file.name for file in stored] == sorted(names)


def test_what_was_spilled_goes_with_the_listing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    listing = Listing.build("folder", files([1] * 5), 2)
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.iterdir())) == 2
    with pytest.raises(TypeError, match="store its chunks"):
        pickle.dumps(listing)
    del listing
    gc.collect()
    assert not folder.exists()


def test_a_small_listing_can_be_sent():
    listing = pickle.loads(pickle.dumps(Listing.build("folder", files([1, 2]))))
    assert list(listing) == files([1, 2])


def test_new_files_come_after_all_old_ones():
    a, b, c, d = files([1, 2, 0, 4])
    assert grown([b, d], [a, b, c, d]) == [b, d, a, c]
    once = Listing.extended(Listing.build("folder", [b]), Listing.build("folder", [a, b]))
    assert list(Listing.extended(once, Listing.build("folder", [a, b, c, d]))) == [b, a, c, d]
    assert Listing.extended(once, Listing.build("folder", [a, b])).fingerprint == once.fingerprint


@given(sizes=st.lists(st.sampled_from([None, "old", "new"]), min_size=1, max_size=8))
def test_old_rows_keep_their_numbers(sizes):
    names = [f"{index}" for index, size in enumerate(sizes) if size]
    old = [SourceFile(name, 3, 2) for name in names if sizes[int(name)] == "old"]
    assert grown(old, [SourceFile(name, 3, 2) for name in names])[: len(old)] == old


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ([], r"a held 1 rows in 10 bytes when .* is not there any more"),
        (["b", "c"], r"a held 1 rows .* is not there any more"),
        (["a", "c"], r"b held 2 rows in 20 bytes .* is not there any more"),
        (["a", "B", "c"], r"b held 2 rows in 20 bytes .* holds 2 rows in 21 bytes now"),
    ],
)
def test_files_that_went_or_changed_are_refused(now, message):
    a, b, c = files([1, 2, 3])
    known = {"a": a, "b": b, "c": c, "B": b._replace(size=21)}
    with pytest.raises(DataError, match=message):
        grown([a, b], [known[name] for name in now])


def test_only_files_can_be_added():
    one, other = Listing.build("arrow", files([1])), Listing.build("folder", files([1]))
    with pytest.raises(DataError, match="is of the kind arrow, and only parquet, folder and webdataset"):
        Listing.extended(one, one)
    with pytest.raises(DataError, match="was arrow and is folder"):
        Listing.extended(one, other)
