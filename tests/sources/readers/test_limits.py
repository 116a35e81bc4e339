"""Images of very many bytes are not read, and few bytes that unpack to very many do not fill the memory."""

import os
import subprocess
import sys
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.samples import dataset, digits, pairs, write_folder, write_parquet, write_tar
from volgrowth.records import Status
from volgrowth.sources import open_source

IMAGES = [*digits(5), digits(1)[0] + bytes(2000), *digits(4)]
LARGE = 5
"""The row of `IMAGES` with more than a thousand bytes; the others have a hundred or two."""


def by_path(folder):
    write_folder(folder / "pictures", IMAGES)
    paths = [str(path) for path in sorted((folder / "pictures").iterdir())]
    column = pa.array([{"bytes": None, "path": path} for path in paths])
    pq.write_table(pa.table({"image": column}), folder / "paths.parquet")
    return folder / "paths.parquet"


def kind(name, folder):
    match name:
        case "folder":
            write_folder(folder / "images", IMAGES)
            return folder / "images"
        case "parquet":
            write_parquet(folder / "0.parquet", IMAGES)
            return folder / "0.parquet"
        case "paths":
            return by_path(folder)
        case "webdataset":
            write_tar(folder / "0.tar", pairs(IMAGES))
            return folder / "0.tar"
        case _:
            dataset(IMAGES).save_to_disk(folder / "saved")
            return folder / "saved"


@pytest.mark.parametrize("name", ["folder", "parquet", "paths", "webdataset", "saved"])
def test_an_image_of_more_bytes_than_the_limit_is_not_read_and_its_neighbours_are(name, tmp_path):
    data = str(kind(name, tmp_path))
    rows = list(open_source(data, max_bytes=1000).read(0, 10))
    assert [row.data for row in rows] == [None if k == LARGE else image for k, image in enumerate(IMAGES)]
    assert rows[LARGE].status is Status.TOO_LARGE
    assert rows[LARGE].error == f"{len(IMAGES[LARGE])} encoded bytes, more than the limit of 1000 (max_bytes)"
    at_the_limit = open_source(data, max_bytes=len(IMAGES[LARGE]))
    assert [row.data for row in at_the_limit.read(0, 10)] == IMAGES


def sparse_tar(path):
    """A tar of 10 kB with a member of 20 GB, as `tar --sparse` writes it: one block of data, at its end."""
    size, at = 20 * 10**9, 20 * 10**9 - 512
    member = tarfile.TarInfo("0001.png")
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 512
    head = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    head[386:398], head[398:410] = (b"\x80" + number.to_bytes(11, "big") for number in (at, 512))
    head[483:495] = b"\x80" + size.to_bytes(11, "big")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    write_tar(path, pairs(digits(1)))
    whole = path.read_bytes()
    path.write_bytes(bytes(head) + b"x" * 512 + whole)


def parquet_of_large_values(path, packed="zstd"):
    values = [bytes([65 + k % 2]) * 20_000_000 for k in range(2)]
    pq.write_table(pa.table({"image": pa.array([values[k % 2] for k in range(24)])}), path, compression=packed)


READ = """
import sys
from pathlib import Path
from volgrowth.sources import open_source

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) >> 10

Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
before = memory("VmRSS")
source = open_source(sys.argv[1])
lengths = [len(row.data or b"") for row in source.read(0, source.num_rows)]
print(max(lengths), memory("VmHWM") - before)
"""


def peak(data):
    """Bytes of the largest image that comes out, and the MiB that reading all rows takes, in a process of its own."""
    path = os.pathsep.join(filter(None, sys.path))
    run = [sys.executable, "-c", READ, str(data)]
    done = subprocess.run(run, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path})
    largest, mebibytes = done.stdout.split()
    return int(largest), int(mebibytes)


measured = pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="Linux tells the peak of memory")


@measured
def test_a_sparse_member_of_a_tar_is_not_unpacked(tmp_path):
    sparse_tar(tmp_path / "0.tar")
    assert (tmp_path / "0.tar").stat().st_size < 20_000
    largest, mebibytes = peak(tmp_path / "0.tar")
    assert largest < 1000
    assert mebibytes < 100


@measured
def test_large_values_in_a_few_bytes_of_parquet_are_taken_one_by_one(tmp_path):
    """Two values, and 24 rows that point to them: as a batch 480 MB, and as much again in Python."""
    parquet_of_large_values(tmp_path / "0.parquet")
    assert (tmp_path / "0.parquet").stat().st_size < 30_000
    largest, mebibytes = peak(tmp_path / "0.parquet")
    assert largest == 20_000_000
    assert mebibytes < 400


def test_a_row_group_larger_than_what_is_fetched_ahead_is_read_by_pages(tmp_path, monkeypatch):
    from volgrowth.sources.readers.tables import parquet, row_groups

    images = digits(40)
    column = pa.array(images, pa.binary())
    pq.write_table(pa.table({"image": column}), tmp_path / "0.parquet", write_batch_size=1, data_page_size=1)
    monkeypatch.setattr(parquet, "AHEAD_BYTES", 1)
    monkeypatch.setattr(row_groups, "BATCH_BYTES", 500)  # a few of these images
    source = open_source(str(tmp_path / "0.parquet"))
    assert [row.data for row in source.read(0, 40)] == images
    assert [row.data for row in source.read(7, 33)] == images[7:33]
