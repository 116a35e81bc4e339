"""Tars as other programs write them, and tars that are damaged, joined, cut, padded or made to lie."""

import os
import random
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.samples import digits, pairs, write_tar
from tests.support.tars import header, ordinary, pax
from volgrowth.errors import DataError
from volgrowth.records import Status
from volgrowth.sources import Source, open_source

IMAGES = digits(9)


def opened(folder: Path, content: bytes) -> Source:
    (folder / "a.tar").write_bytes(content)
    return open_source(str(folder / "a.tar"))


def pictures(source: Source) -> list[bytes | None]:
    return [row.data for row in source.read(0, source.num_rows)]


def archive(images: list[bytes], first: int = 0) -> bytes:
    """An archive of captions and images with all of its padding."""
    return ordinary(pairs(images, first))


WHOLE = archive(IMAGES)
END = WHOLE.rindex(b"IEND") // 512 * 512 + 512  # where the end mark begins


@pytest.mark.parametrize(
    ("content", "rows", "joined"),
    [
        (WHOLE[:END] + bytes(512), 9, 0),
        (WHOLE[:END] + bytes(1024), 9, 0),
        (WHOLE[:END] + bytes(1777), 9, 0),
        (WHOLE + bytes(3 << 20), 9, 0),
        (WHOLE + archive(IMAGES, 9), 18, 1),
        (WHOLE[:END] + bytes(512) + archive(IMAGES, 9), 18, 1),
        (WHOLE[:END] + bytes(2 << 20) + archive(IMAGES, 9), 18, 1),
        (WHOLE[:END] + archive(IMAGES, 9), 18, 0),
        (WHOLE + bytes(10240) + archive(IMAGES, 9) + archive(IMAGES, 18), 27, 2),
    ],
)
def test_padded_and_joined_archives_are_read_to_the_end(tmp_path, monkeypatch, content, rows, joined):
    monkeypatch.setattr("volgrowth.sources.readers.webdataset.STRIDE", 4)
    source = opened(tmp_path, content)
    assert pictures(source) == IMAGES * (rows // 9)
    assert [row.source for row in source.read(rows - 2, rows)] == [f"a.tar#{row:04}" for row in (rows - 2, rows - 1)]
    aside = {each.kind: each.count for each in source.opened.left_aside}
    assert aside == {"other member": rows} | ({"inner end mark": joined} if joined else {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"cannot be read as tar \(it is empty\)"),
        (b"no tar", r"cannot be read as tar \(it begins without a header\)"),
        (bytes(100), "has no end mark: it was cut off, or never closed"),
        (WHOLE[:END], r"has no end mark: .* \(truncate -s \+1024\)"),
        (WHOLE[: END + 100], "has no end mark"),
        (WHOLE[: END - 1], r"was cut off or is damaged: member '0008\.png' at byte \d+ ends at byte"),
        (WHOLE[: END - 1500], r"was cut off or is damaged: member '0008\.txt' at"),
        (WHOLE[: END - 600], "is damaged at byte .*: it was cut off; copy or write it again"),
        (WHOLE + b"\n", f"holds 1 bytes after its end mark, from byte {len(WHOLE)}, .*truncate -s {len(WHOLE)}"),
        (WHOLE[: END + 1024] + b"x" * 1000, f"holds 1000 bytes after its end mark, from byte {END + 1024}"),
        (
            WHOLE[:-100] + WHOLE,
            "holds .* after its end mark, from byte .* if a tar was joined there, write both again as one",
        ),
        (WHOLE + WHOLE[: END - 700], "is damaged at byte|was cut off"),
        (WHOLE + WHOLE[:END], "has no end mark"),
    ],
)
def test_what_is_not_whole_is_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=rf"a\.tar {message}") as caught:
        opened(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_the_bytes_after_an_end_mark_can_be_cut_off_as_the_message_says(tmp_path):
    with pytest.raises(DataError, match="truncate -s") as caught:
        opened(tmp_path, WHOLE[: END + 1024] + bytes(700) + b"signature")
    os.truncate(tmp_path / "a.tar", int(re.findall(r"truncate -s (\d+)", str(caught.value))[0]))
    assert open_source(str(tmp_path)).num_rows == 9


LINK = "the image is a link in the tar, which is not followed (pack it with tar --hard-dereference -h)"
PNG = header("0.png", IMAGES[0])
LIES: dict[str, tuple[bytes, str | None]] = {
    "a size beyond the file": (header("0.png", b"", size=9 << 30), "ends at byte 966367[0-9]{4}, and the file has"),
    "a negative size": (header("0.png", b"", size=-1024) + PNG, "a member has -1024 bytes"),
    "a size that leads back to itself": (header("0.png", b"", size=-512) + PNG, "a member has -512 bytes"),
    "a size in PAX": (pax(size=str(len(IMAGES[0]))) + PNG, None),
    "a PAX size beyond the file": (pax(size="99999999") + PNG, "ends at byte 100"),
    "a negative PAX size": (pax(size="-5") + PNG, "a member's size is '-5'"),
    "no records in PAX": (header("x", b"", tarfile.XHDTYPE) + PNG, None),
    "a record longer than its header": (header("x", b"99 path=a\n", tarfile.XHDTYPE) + PNG, "no PAX record is there"),
    "a record of no length": (header("x", b"0 path=a\n", tarfile.XHDTYPE) + PNG, "no PAX record is there"),
    "two PAX headers": (pax(path="a.png") * 2 + PNG, "a member has two PAX headers"),
    "thousands of long names": (header("x", b"a.png\0", tarfile.GNUTYPE_LONGNAME) * 3000 + PNG, None),
    "a long name that fills memory": (
        header("x", b"", tarfile.GNUTYPE_LONGNAME, size=99 << 20),
        "a header of 103809024",
    ),
    "a PAX header at the end": (PNG + pax(path="a"), "no header of a tar is there"),
    "a global comment": (pax(tarfile.XGLTYPE, comment="x") + PNG, None),
    "one path for all": (pax(tarfile.XGLTYPE, path="a.png") + PNG, "has a global PAX header with 'path' at byte 0"),
    "a sparse map beyond the file": (header("0.png", b"", tarfile.GNUTYPE_SPARSE, {482: b"\1"})[:512], "a sparse file"),
}


@pytest.mark.parametrize(("content", "message"), LIES.values(), ids=LIES)
def test_headers_that_lie_are_refused_and_rare_ones_read(tmp_path, content, message):
    if message is None:
        assert pictures(opened(tmp_path, content + bytes(1024))) == IMAGES[:1]
        return
    with pytest.raises(DataError, match=rf"a\.tar .*{message}"):
        opened(tmp_path, content + (b"" if "sparse" in message else bytes(1024)))


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (tarfile.LNKTYPE, LINK),
        (tarfile.SYMTYPE, LINK),
        (tarfile.CHRTYPE, "the image is no regular member of the tar (other), which is not expanded"),
        (tarfile.FIFOTYPE, "the image is no regular member of the tar (other), which is not expanded"),
        (b"Z", "the image is no regular member of the tar (other), which is not expanded"),
        (tarfile.AREGTYPE, "the image is empty"),
        (tarfile.CONTTYPE, "the image is empty"),
    ],
)
def test_members_that_are_no_files_are_rows_with_a_reason(tmp_path, kind, error):
    source = opened(tmp_path, PNG + header("1.png", b"", kind) + header("2.png", IMAGES[2]) + bytes(1024))
    assert [row.error for row in source.read(0, 3)] == [None, error, None]
    assert pictures(source)[::2] == [IMAGES[0], IMAGES[2]]


def test_times_of_a_gnu_archive_are_no_part_of_a_name(tmp_path):
    """`tar --incremental` writes the time of access where other formats continue a name."""
    gnu = {257: b"ustar  \0", 345: b"14767040561\0"}
    source = opened(tmp_path, header("0.png", IMAGES[0], patches=gnu) + bytes(1024))
    assert [row.source for row in source.read(0, 1)] == ["a.tar#0"]


def test_a_large_image_is_not_read(tmp_path):
    write_tar(tmp_path / "a.tar", [("0.png", IMAGES[0]), ("1.png", IMAGES[1] + bytes(500)), ("1.cls", b"7")])
    source = open_source(str(tmp_path), max_bytes=len(IMAGES[0]) + 300, condition_column="cls")
    first, second = source.read(0, 2)
    assert (first.data, first.error) == (IMAGES[0], None)
    assert (second.data, second.status, second.condition) == (None, Status.TOO_LARGE, 7)


def gnu_tar() -> bool:
    found = shutil.which("tar")
    return bool(found) and b"GNU tar" in subprocess.run(["tar", "--version"], capture_output=True, check=False).stdout


needs_gnu_tar = pytest.mark.skipif(not gnu_tar(), reason="GNU tar is not installed")


@needs_gnu_tar
@pytest.mark.parametrize("options", ["gnu", "oldgnu", "pax", "ustar", "v7", "gnu --incremental", "gnu -b 200"])
def test_tars_of_gnu_tar_are_read(tmp_path, options):
    names = [f"{'d' * 60}/{name}" for name, _ in pairs(IMAGES)]
    for name, (_, content) in zip(names, pairs(IMAGES), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    subprocess.run(
        ["tar", "-C", tmp_path, "-cf", tmp_path / "a.tar", *f"--format={options}".split(), *sorted(names)], check=True
    )
    source = open_source(str(tmp_path / "a.tar"), id_column="__key__")
    assert pictures(source) == IMAGES
    assert [row.image_id for row in source.read(0, 2)] == [f"{'d' * 60}/0000", f"{'d' * 60}/0001"]


@needs_gnu_tar
@pytest.mark.parametrize("options", ["gnu", "pax --sparse-version=0.0", "pax --sparse-version=0.1", "pax"])
def test_a_sparse_file_of_20_gb_is_a_row_without_being_expanded(tmp_path, options):
    for name, image in zip(("0.png", "1.png", "2.png"), IMAGES, strict=False):
        (tmp_path / name).write_bytes(image)
    os.truncate(tmp_path / "1.png", 20 << 30)
    command = ["tar", "-C", tmp_path, "--sparse", "-cf", tmp_path / "a.tar", *f"--format={options}".split()]
    subprocess.run([*command, "0.png", "1.png", "2.png"], check=True)
    source = open_source(str(tmp_path / "a.tar"), id_column="__key__")
    rows = list(source.read(0, 3))
    assert [row.data for row in rows] == [IMAGES[0], None, IMAGES[2]]
    assert [row.image_id for row in rows] == ["0", "1", "2"]
    assert rows[1].error == "the image is no regular member of the tar (sparse file), which is not expanded"


def flipped(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]


def cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.choice([chance.randrange(len(content)), chance.randrange(len(content) // 512 + 1) * 512])]


def holed(content: bytes, chance: random.Random) -> bytes:
    at, length = (chance.randrange(20) * 512 for _ in range(2))
    return content[:at] + bytes(len(content[at : at + length])) + content[at + length :]


def doubled(content: bytes, chance: random.Random) -> bytes:
    at, length = (chance.randrange(20) * 512 for _ in range(2))
    return content[: at + length] + content[at:]


def padded(content: bytes, chance: random.Random) -> bytes:
    return content + bytes(chance.randrange(9) * 512)


def littered(content: bytes, chance: random.Random) -> bytes:
    return content + chance.randbytes(chance.randrange(1, 600))


FAULTS: list[Callable[[bytes, random.Random], bytes]] = [flipped, cut, holed, doubled, padded, littered]


@needs_gnu_tar
@pytest.mark.parametrize("seed", range(6))
def test_faults_are_refused_or_the_images_are_those_that_gnu_tar_finds(tmp_path, seed):
    """The independent reader is `tar --ignore-zeros`, which must unpack the same bytes without a complaint."""
    chance, read = random.Random(seed), 0
    for _ in range(40):
        content = b""
        for part in range(chance.randrange(1, 4)):
            members = pairs(IMAGES[: chance.randrange(1, 5)], 10 * part)
            content += ordinary(members, chance.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
        for fault in chance.choices(FAULTS, k=chance.randrange(3)):
            content = fault(content, chance)
        try:
            found = pictures(opened(tmp_path, content))
        except DataError:
            continue
        read += 1
        command = ["tar", "--ignore-zeros", "-xOf", tmp_path / "a.tar", "--wildcards", "*.png"]
        unpacked = subprocess.run(command, capture_output=True, check=False)
        assert unpacked.stderr == b""
        assert b"".join(data or b"" for data in found) == unpacked.stdout
    assert read > 10
