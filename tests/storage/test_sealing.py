"""A seal shows every flipped bit of a file, wherever it is: in pages, their headers, the footer or the seal itself."""

import json
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from volgrowth.errors import DamagedError
from volgrowth.storage import sealing
from volgrowth.storage.store import Store

FLIPS = 400


def a_table(rows: int = 200) -> pa.Table:
    """Columns of every kind that scores have: numbers, hashes, repeated strings, lists, nulls."""
    random = np.random.default_rng(0)
    return pa.table(
        {
            "row": pa.array(range(rows), pa.int64()),
            "status": ["ok", "crashed"] * (rows // 2),
            "growth": random.normal(size=rows),
            "rates": pa.array(list(random.normal(size=(rows, 3))), pa.list_(pa.float32())),
            "phash": pa.array(random.integers(0, 2**63, rows), pa.uint64()),
            "error": pa.array([None, "it died"] * (rows // 2)),
        }
    )


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def bits(data: bytes, seed: int) -> list[int]:
    """Some bits of all bytes, and as many of the last kilobyte, where a footer and its seal are."""
    random = np.random.default_rng(seed)
    size = 8 * len(data)
    return [*random.integers(0, size, FLIPS), *random.integers(max(0, size - 8 * 1024), size, FLIPS)]


def test_a_flipped_bit_of_a_table_is_seen_or_changes_nothing(store):
    table, footer = a_table(), {"rows": "200", "config_digest": "sha256:" + "0f" * 32}
    store.write_table("t.parquet", table, footer)
    data, seen, refused = store.read("t.parquet"), 0, 0
    whole = table.replace_schema_metadata(footer)
    for bit in bits(data, 1):
        store.files.pipe_file(f"{store.root}/t.parquet", flipped(data, int(bit)))
        try:
            read = store.read_table("t.parquet")
            assert read.equals(whole, check_metadata=True), bit
        except DamagedError:
            seen += 1
        try:
            assert store.read_footer("t.parquet") == (200, footer), bit
        except DamagedError:
            refused += 1
    assert seen == 2 * FLIPS
    assert refused > FLIPS  # those of the pages are not looked at for the footer alone


def test_a_flipped_bit_of_a_json_file_is_seen_or_changes_nothing(store):
    content = {"name": "ü", "counts": {"rows": 300, "ok": 299}, "shares": [0.1, 1e-9], "none": None}
    store.write_json("s.json", content)
    data, seen = store.read("s.json"), 0
    for bit in bits(data, 2):
        store.files.pipe_file(f"{store.root}/s.json", flipped(data, int(bit)))
        try:
            read = store.read_json("s.json")
            assert {name: read.get(name) for name in content} == content, bit
        except DamagedError:
            seen += 1
    assert seen > FLIPS


def test_cut_files_and_files_of_another_kind_are_damaged(store):
    store.write_table("t.parquet", a_table(), {})
    data = store.read("t.parquet")
    for harm in (b"", b"PAR1", data[:8], data[:-1], data[: len(data) // 2], b"{}", b"\0" * 4000, data + b"PAR1"):
        store.write("t.parquet", harm)
        for read in (store.read_table, store.read_footer):
            with pytest.raises(DamagedError, match=r"t\.parquet is damaged"):
                read("t.parquet")
    for harm in (b"", b"[]", b"null", b"3", b'"a"', b"\xff", b'{"a": ', data):
        store.write("s.json", harm)
        with pytest.raises(DamagedError, match=r"s\.json is damaged"):
            store.read_json("s.json")


def test_files_without_a_seal_are_those_of_older_versions(store, tmp_path):
    pq.write_table(a_table().replace_schema_metadata({"rows": "200"}), tmp_path / "t.parquet", compression="zstd")
    (tmp_path / "s.json").write_text(json.dumps({"a": 1}))
    assert store.read_table("t.parquet").equals(a_table())
    assert store.read_footer("t.parquet") == (200, {"rows": "200"})
    assert store.read_json("s.json") == {"a": 1}


def test_a_json_file_may_be_laid_out_anew_and_not_changed(store):
    store.write_json("s.json", {"a": 1, "b": [1.5, None]})
    content = json.loads(store.read("s.json"))
    store.write("s.json", json.dumps(content, sort_keys=True).encode())
    assert store.read_json("s.json") == {"a": 1, "b": [1.5, None]}
    store.write("s.json", json.dumps({**content, "a": 2}).encode())
    with pytest.raises(DamagedError, match="remove its entry sha256 if you meant to change it"):
        store.read_json("s.json")


def test_the_same_table_gives_the_same_bytes_and_others_may_read_it(store, tmp_path):
    for name in ("a", "b"):
        store.write_table(name, a_table(), {"rows": "200"})
    assert store.read("a") == store.read("b")
    assert pq.read_table(tmp_path / "a", page_checksum_verification=True).equals(a_table())


def test_a_long_footer_is_read_whole(store):
    store.write_table("t.parquet", a_table(), {"long": "x" * 200_000})
    assert store.read_footer("t.parquet") == (200, {"long": "x" * 200_000})


def in_pieces(store, table, footer, *sizes):
    """Write a table with row groups of these sizes."""
    with patch.object(sealing, "GROUP_ROWS", 1), store.table_writer("t.parquet", table.schema, footer) as writer:
        for start, size in zip(np.cumsum([0, *sizes]).tolist(), sizes, strict=False):
            writer.write(table.slice(start, size))


def test_small_pieces_share_a_row_group(store):
    """A footer that has an entry for each column of each piece would be larger than the rows."""
    table = pa.table({"row": range(100_000)})
    with store.table_writer("t.parquet", table.schema, {}) as writer:
        for start in range(0, 100_000, 1000):
            writer.write(table.slice(start, 1000))
    file = pq.ParquetFile(store.path("t.parquet"))
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [17_000] * 5 + [15_000]
    assert store.read_table("t.parquet").equals(table)


def test_a_table_in_one_piece_has_the_same_bytes_as_a_table_at_once(store):
    table, footer = a_table(), {"rows": "200"}
    store.write_table("at-once.parquet", table, footer)
    in_pieces(store, table, footer, 200)
    assert store.read("t.parquet") == store.read("at-once.parquet")


@pytest.mark.parametrize("sizes", [(), (200,), (70, 1, 0, 129)], ids=str)
def test_batches_hold_the_rows_of_a_table_in_order(store, sizes):
    table, footer = a_table(), {"rows": "200"}
    in_pieces(store, table, footer, *sizes)
    whole = table.slice(0, sum(sizes))
    assert store.read_table("t.parquet").equals(whole)
    assert store.read_footer("t.parquet") == (len(whole), footer)
    assert store.read_schema("t.parquet").equals(table.schema)
    batches = list(store.read_batches("t.parquet", most=50))
    assert pa.Table.from_batches(batches, table.schema).equals(whole)
    assert all(batch.num_rows <= 50 for batch in batches)
    some = list(store.read_batches("t.parquet", ["phash", "none", "row"]))
    assert all(set(batch.schema.names) == {"phash", "row"} for batch in some)


def test_a_flipped_bit_is_seen_by_who_reads_batches_of_some_columns(store):
    """Also in a column that is not decoded, and in a header, which no page checksum is of."""
    in_pieces(store, a_table(), {"rows": "200"}, 70, 130)
    data, seen = store.read("t.parquet"), 0
    for bit in bits(data, 3):
        store.files.pipe_file(f"{store.root}/t.parquet", flipped(data, int(bit)))
        try:
            list(store.read_batches("t.parquet", ["row"]))
        except DamagedError:
            seen += 1
    assert seen == 2 * FLIPS


@pytest.mark.parametrize("kept", [0, 3, 12, 0.5, -1], ids=str)
def test_a_table_that_was_cut_off_is_damaged_for_who_reads_batches(store, kept):
    in_pieces(store, a_table(), {}, 70, 130)
    data = store.read("t.parquet")
    store.write("t.parquet", data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(DamagedError, match=r"t.parquet is damaged"):
        list(store.read_batches("t.parquet"))
