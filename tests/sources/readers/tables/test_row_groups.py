import os
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.samples import digits, write_parquet
from volgrowth.errors import DataError
from volgrowth.sources import open_source

IMAGES = [bytes([k % 256, k // 256]) * 3 for k in range(500)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two files, of one large row group and of a large and a small one."""
    root = tmp_path_factory.mktemp("large")
    write_parquet(root / "0.parquet", IMAGES[:300], group=300)
    write_parquet(root / "1.parquet", IMAGES[300:], group=190)
    return open_source(str(root))


@pytest.fixture
def begun(monkeypatch):
    """The row groups that are unpacked from their beginning."""
    groups: list[int] = []
    iter_batches = pq.ParquetFile.iter_batches

    def spy(self, **options):
        groups.extend(options["row_groups"])
        return iter_batches(self, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    return groups


def test_shards_one_after_another_unpack_a_row_group_once(source, begun):
    for start in range(0, 500, 20):
        assert [row.data for row in source.read(start, start + 20)] == IMAGES[start : start + 20]
    assert begun == [0, 0, 1]


def test_a_worker_that_gets_every_third_shard_unpacks_a_row_group_once(source, begun):
    for start in range(20, 300, 60):
        assert [row.data for row in source.read(start, start + 20)] == IMAGES[start : start + 20]
    assert begun == [0]


SPANS = st.tuples(st.integers(0, 500), st.integers(0, 500)).map(sorted)


@given(spans=st.lists(SPANS, max_size=6), left=st.lists(st.integers(0, 100), max_size=6))
def test_reads_in_any_order_and_reads_that_are_left_give_the_rows_asked_for(source, spans, left):
    for (start, stop), taken in zip(spans, [*left, *[None] * 6], strict=False):
        rows = source.read(start, stop)
        some = list(rows) if taken is None else [row for row, _ in zip(rows, range(taken), strict=False)]
        rows.close()
        assert [row.data for row in some] == IMAGES[start:stop][:taken]
        assert [row.row for row in some] == list(range(start, stop))[:taken]


def test_reads_at_the_same_time_do_not_share_a_file(source):
    list(source.read(0, 10))
    one, other = source.read(10, 290), source.read(10, 290)
    together = [(a.data, b.data) for a, b in zip(one, other, strict=True)]
    assert together == [(data, data) for data in IMAGES[10:290]]
    wrong: list[int] = []

    def read(start: int) -> None:
        several = [[row.data for row in source.read(start, start + 50)] for _ in range(10)]
        wrong.extend(start for images in several if images != IMAGES[start : start + 50])

    threads = [threading.Thread(target=read, args=(start,)) for start in (0, 40, 80, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="Linux lists the open files of a process")
def test_at_most_one_file_stays_open(tmp_path):
    for name in range(5):
        write_parquet(tmp_path / f"{name}.parquet", IMAGES[:50], group=50)
    before = len(os.listdir("/proc/self/fd"))
    source = open_source(str(tmp_path))
    for start in range(0, 250, 10):
        list(source.read(start, start + 10))
        assert len(os.listdir("/proc/self/fd")) <= before + 1
        next(source.read(start, start + 10)).data  # noqa: B018 - a read that is left
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("change", ["cut", "gone"])
def test_a_file_that_changes_between_two_shards_is_an_error(tmp_path, change):
    path = tmp_path / "0.parquet"
    write_parquet(path, IMAGES[:100], group=100)
    source = open_source(str(tmp_path))
    list(source.read(0, 10))
    size = path.stat().st_size
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(DataError, match=f"holds {size - 1} bytes, and {size} when"):
            list(source.read(10, 20))
    else:
        path.unlink()
        with pytest.raises(DataError, match="does not exist any more"):
            list(source.read(10, 20))


def test_behind_damage_each_shard_says_so_and_before_it_none(tmp_path):
    images = digits(90)
    path = tmp_path / "0.parquet"
    pq.write_table(
        pa.table({"image": pa.array(images, pa.binary())}), path, write_batch_size=1, data_page_size=1,
        use_dictionary=False, compression="none",
    )  # fmt: skip
    data = bytearray(path.read_bytes())
    at = data.index(images[70]) - 40  # the header of its page
    data[at : at + 36] = b"\xff" * 36
    path.write_bytes(data)
    whole = list(open_source(str(path)).read(0, 90))
    source = open_source(str(path))
    assert [row for start in range(0, 90, 15) for row in source.read(start, start + 15)] == whole
    readable = [row.data is not None for row in whole]
    assert any(readable)
    assert not all(readable)
