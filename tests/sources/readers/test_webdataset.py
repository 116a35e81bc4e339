import contextlib
import gzip
import io
import os
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.samples import CAPTIONS, CUTS, again, conditions, digits, in_parts, pairs, write_parquet, write_tar
from tests.support.tars import ordinary
from volgrowth.errors import DataError
from volgrowth.sources import Listing, content_id, open_source
from volgrowth.sources.readers import webdataset as module

SIZES = (7, 0, 31, 19)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Tars of odd sizes, an empty one among them, with an offset for every fourth sample."""
    root, images = tmp_path_factory.mktemp("tars"), digits(57)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STRIDE", 4)
        for index, size in enumerate(SIZES):
            start = sum(SIZES[:index])
            write_tar(root / f"{index:05}.tar", pairs(images[start : start + size], start))
        yield open_source(str(root))


@given(cuts=CUTS)
def test_reading_in_two_parts_is_reading_at_once(source, cuts):
    in_parts(source, cuts)


def test_rows_are_the_samples(source, images):
    rows = list(source.read(0, 57))
    assert source.kind == "webdataset"
    assert [row.data for row in rows] == images
    assert [row.image_id for row in rows] == [content_id(data) for data in images]
    assert [rows[row].source for row in (6, 7, 56)] == ["00000.tar#0006", "00002.tar#0007", "00003.tar#0056"]
    assert [(file.rows, len(file.offsets)) for file in source.listing] == [(7, 2), (0, 0), (31, 8), (19, 5)]


def test_only_the_neighbourhood_of_the_rows_is_read(source, monkeypatch):
    wanted = []
    content = module._content

    def watched(members, member, max_bytes):
        wanted.append(member.name)
        return content(members, member, max_bytes)

    monkeypatch.setattr(module, "_content", watched)
    monkeypatch.setattr(module, "STRIDE", 4)
    (row,) = source.read(7 + 22, 7 + 23)
    assert row.source == "00002.tar#0029"
    assert wanted == ["0029.png"]


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_formats_of_tar_are_read(tmp_path, images, monkeypatch, format_):
    monkeypatch.setattr(module, "STRIDE", 2)
    long = "f" * 90 + "/"  # with the name more than the 100 bytes of the first format
    names = [f"{long}{number:04}.cls.png" for number in range(9)]
    if format_ != tarfile.USTAR_FORMAT:
        names = [f"{long * 3}{name}é" for name in names] + [f"{long * 3}\udcff.png"]
    members = [
        (name.replace("é", "").replace("4.cls", "4é.cls"), data) for name, data in zip(names, images, strict=False)
    ]
    write_tar(tmp_path / "a.tar", members, format_)
    source = open_source(str(tmp_path / "a.tar"), id_column="__key__")
    for row, (name, data) in enumerate(members):
        (read,) = source.read(row, row + 1)
        assert read.data == data
        assert read.image_id == name.partition(".")[0].replace("\udcff", r"\xff")


def test_keys_are_what_webdataset_takes_them_for(tmp_path, images):
    members = [
        ("__meta__/x.png", images[0]),
        ("./a.b/01.png", images[1]),
        ("./a.b/01.json", b"{}"),
        ("readme", b"no dot"),
        (".hidden.png", images[0]),
        ("c/01.JPG", images[2]),
        ("c/01.jpg", images[3]),
        ("/c/../02.seg.png", images[4]),
        ("../02.txt", b"alone"),
    ]
    write_tar(tmp_path / "a.tar", members)
    rows = list(open_source(str(tmp_path / "a.tar"), id_column="__key__").read(0, 5))
    assert [row.image_id for row in rows] == ["./a.b/01", "c/01", "c/01", "/c/../02", "../02"]
    assert [row.data for row in rows] == [images[1], images[2], images[3], images[4], None]
    assert rows[4].error == "the sample holds no image: txt"


def test_an_extension_is_chosen_like_a_column(tmp_path, images):
    members = [("a.left.png", images[0]), ("a.right.png", images[1]), ("b.left.png", images[2])]
    write_tar(tmp_path / "a.tar", members)
    rows = list(open_source(str(tmp_path), image_column=".Right.png").read(0, 2))
    assert [row.data for row in rows] == [images[1], None]
    with pytest.raises(DataError, match=r"no member .* has \.up; they have left\.png, right\.png \(a key ends at"):
        open_source(str(tmp_path), image_column="up")
    with pytest.raises(DataError, match="id_column was 'txt': expected __key__"):
        open_source(str(tmp_path), id_column="txt")


def test_members_without_bytes_are_rows(tmp_path, images):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (("a.png", tarfile.SYMTYPE), ("b.png", tarfile.REGTYPE), ("c", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "elsewhere"
            tar.addfile(info)
        info = tarfile.TarInfo("d.png")
        info.size = len(images[0])
        tar.addfile(info, io.BytesIO(images[0]))
    rows = list(open_source(str(tmp_path / "a.tar")).read(0, 3))
    assert [row.data for row in rows] == [None, b"", images[0]]
    assert [row.error for row in rows] == [
        "the image is a link in the tar, which is not followed (pack it with tar --hard-dereference -h)",
        "the image is empty",
        None,
    ]


@pytest.mark.parametrize("cut", [1, 511, 512, 600, 1500])
def test_a_tar_that_was_cut_off_is_refused(tmp_path, images, cut):
    write_tar(tmp_path / "a.tar", pairs(images[:9]))
    data = (tmp_path / "a.tar").read_bytes()
    end = data.rindex(b"IEND") // 512 * 512 + 512
    (tmp_path / "a.tar").write_bytes(data[: end - cut])
    with pytest.raises(DataError, match=r"a\.tar .*(cut off|damaged).* write it again"):
        open_source(str(tmp_path))
    (tmp_path / "a.tar").write_bytes(data[:end])
    with pytest.raises(DataError, match=r"a\.tar has no end mark: .* \(truncate -s \+1024\)"):
        open_source(str(tmp_path))
    os.truncate(tmp_path / "a.tar", end + 1024)
    assert open_source(str(tmp_path)).num_rows == 9


def test_a_damaged_tar_is_refused(tmp_path, images):
    write_tar(tmp_path / "a.tar", pairs(images[:9]))
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[4 * 512 : 4 * 512 + 20] = b"x" * 20
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tar is damaged at byte 2048"):
        open_source(str(tmp_path))
    for content in (b"", b"no tar", b"x" * 2000):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.tar cannot be read as tar"):
            open_source(str(tmp_path))


@given(at=st.integers(0, 9 * 512), data=st.binary(min_size=1, max_size=700))
def test_whatever_is_in_a_tar_it_is_read_or_refused(tmp_path_factory, at, data):
    path = tmp_path_factory.mktemp("t") / "a.tar"
    write_tar(path, pairs(digits(4)), tarfile.PAX_FORMAT)
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        source = open_source(str(path))
        assert len(list(source.read(0, source.num_rows))) == source.num_rows


def test_a_packed_tar_is_refused(tmp_path, images):
    write_tar(tmp_path / "a.tar", pairs(images[:3]))
    packed = gzip.compress((tmp_path / "a.tar").read_bytes())
    (tmp_path / "a.tar").write_bytes(packed)
    with pytest.raises(DataError, match=r"a\.tar is packed with gzip, .* unpack it to a plain \.tar"):
        open_source(str(tmp_path))
    (tmp_path / "a.tar").rename(tmp_path / "a.tar.gz")
    for data in (tmp_path, tmp_path / "a.tar.gz", tmp_path / "*.tar.gz"):
        with pytest.raises(DataError, match=r"a\.tar\.gz is packed with compression"):
            open_source(str(data))


def test_braces_stand_for_files(tmp_path, images):
    for part in range(9, 12):
        write_tar(tmp_path / f"train-{part:03}.tar", pairs(images[part * 2 : part * 2 + 2]))
    source = open_source(f"{tmp_path}/train-{{009..011}}.tar")
    assert [file.name for file in source.listing] == ["train-009.tar", "train-010.tar", "train-011.tar"]
    assert open_source(f"{tmp_path}/train-{{009,01*}}.tar").fingerprint == source.fingerprint
    with pytest.raises(DataError, match=r"train-012\.tar does not exist, and .*\{009\.\.012\}"):
        open_source(f"{tmp_path}/train-{{009..012}}.tar")


def test_splits_are_told_by_names(tmp_path, images):
    write_tar(tmp_path / "test" / "0.tar", pairs(images[:2]))
    write_tar(tmp_path / "train" / "0.tar", pairs(images[2:5]))
    with pytest.raises(DataError, match=r"several splits \(test, train\)"):
        open_source(str(tmp_path))
    assert open_source(str(tmp_path), split="train").num_rows == 3


def test_what_img2dataset_notes_beside_a_tar_is_not_the_data_set(tmp_path, images):
    write_tar(tmp_path / "00000.tar", pairs(images[:2]))
    write_parquet(tmp_path / "00000.parquet", images[:5])
    source = open_source(str(tmp_path))
    assert (source.kind, source.left_aside[-1].kind) == ("webdataset", "parquet file")
    write_parquet(tmp_path / "more.parquet", images[:5])
    with pytest.raises(DataError, match=r"more than one kind, 2 parquet files and 1 tar file \(00000\.tar\)"):
        open_source(str(tmp_path))


def test_a_tar_that_changed_is_an_error(tmp_path, images):
    write_tar(tmp_path / "a.tar", pairs(images[:9]))
    source = open_source(str(tmp_path))
    size = (tmp_path / "a.tar").stat().st_size
    write_tar(tmp_path / "a.tar", pairs(images[:5]))
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes().ljust(size, b"\0"))
    assert len(list(source.read(0, 5))) == 5
    with pytest.raises(DataError, match=r"holds less than 9 samples, and 9 when .* it has changed"):
        list(source.read(0, 9))
    (tmp_path / "a.tar").write_bytes(b"x")
    with pytest.raises(DataError, match=f"holds 1 bytes, and {size} when"):
        list(source.read(0, 1))


def test_a_worker_scans_nothing(source, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "STRIDE", 4)
    monkeypatch.setattr(module.WebDatasetSource, "_scan", None)
    again = open_source(source.place.where, listing=Listing.stored(source.listing.describe(), source.listing._load))
    assert list(again.read(5, 40)) == list(source.read(5, 40))


@given(cuts=CUTS, stride=st.integers(1, 60), shards=st.integers(1, 4), last=st.booleans())
def test_samples_keep_their_conditions_however_they_are_cut(tmp_path_factory, cuts, stride, shards, last):
    root, images = tmp_path_factory.mktemp("cut"), digits(57)
    for shard in range(shards):
        members = []
        for row in range(57 * shard // shards, 57 * (shard + 1) // shards):
            sample = [(f"{row:02}.png", images[row]), (f"{row:02}.left.jpg", b"no")]
            if CAPTIONS[row] is not None:
                sample.insert(2 * last, (f"{row:02}.txt", f"{CAPTIONS[row]}\n".encode()))
            members += sample
        write_tar(root / f"{shard}.tar", members)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STRIDE", stride)
        rows = in_parts(open_source(str(root), image_column="png", condition_column="txt"), cuts)
    assert [row.condition for row in rows] == CAPTIONS[cuts[0] : cuts[2]]
    assert [row.data for row in rows] == images[cuts[0] : cuts[2]]


@pytest.mark.parametrize(
    ("extension", "content", "condition"),
    [
        ("txt", b"a cat\n", "a cat"),
        ("txt", b" two\nlines\r\n", " two\nlines"),
        ("txt", b"7", "7"),
        ("txt", b"", ""),
        ("caption", b"caf\xc3\xa9 \xff", r"café \xff"),
        ("en.txt", b"a cat", "a cat"),
        ("cls", b"7", 7),
        ("cls", b" -3\n", -3),
        ("fine.cls", b"007", 7),
        ("cls", b"n01440764\n", "n01440764"),
        ("cls", b"1_0", "1_0"),
        ("cls", b"9" * 5000, "9" * 5000),
        ("cls", "٣".encode(), "٣"),
    ],
)
def test_the_content_of_a_member_is_a_condition(tmp_path, images, extension, content, condition):
    write_tar(tmp_path / "a.tar", [("0.png", images[0]), (f"0.{extension}", content), ("1.png", images[1])])
    source = open_source(str(tmp_path), condition_column=extension)
    assert conditions(source) == [condition, None]
    assert source.condition_names is None


def test_a_link_is_no_condition_and_its_image_is_read(tmp_path, images):
    write_tar(tmp_path / "a.tar", pairs(images[:1]))
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        link = tarfile.TarInfo("0000.cls")
        link.type, link.linkname = tarfile.SYMTYPE, "elsewhere"
        tar.addfile(link)
    (row,) = open_source(str(tmp_path), condition_column="cls").read(0, 1)
    assert (row.data, row.condition, row.error) == (images[0], None, None)


def test_only_the_members_that_are_needed_are_read(tmp_path, images, monkeypatch):
    wanted, content = [], module._content

    def watched(members, member, max_bytes):
        wanted.append(member.name)
        return content(members, member, max_bytes)

    members = pairs(images[:9]) + [(f"{row:04}.json", b"{}") for row in range(9)]
    write_tar(tmp_path / "a.tar", sorted(members))
    source = open_source(str(tmp_path), condition_column="txt")
    monkeypatch.setattr(module, "_content", watched)
    assert next(source.read(3, 4)).condition == "a digit"
    assert wanted == ["0003.png", "0003.txt"]


@pytest.mark.parametrize(
    "column", ["json", "JSON", "json.caption", "json:caption", "caption.json", "npy", "jpg", "", "."]
)
def test_an_extension_that_holds_something_else_is_refused(tmp_path, images, column):
    write_tar(tmp_path / "a.tar", pairs(images[:2]))
    for listing in (None, open_source(str(tmp_path)).listing):
        with pytest.raises(DataError) as caught:
            open_source(str(tmp_path), listing=listing, condition_column=column)
        assert str(caught.value) == (
            f"{tmp_path} is a webdataset, and class_column or caption_column was {column!r}: expected the extension of "
            "members that hold a class or a caption and nothing else, such as cls or txt (--class-column, "
            "--caption-column); a key inside a json is not looked up"
        )


def test_the_image_is_not_its_own_condition(tmp_path, images):
    write_tar(tmp_path / "a.tar", [("0.left.raw", images[0]), ("0.cls", b"1")])
    assert open_source(str(tmp_path), image_column="left.raw", condition_column="cls").num_rows == 1
    with pytest.raises(DataError, match=r"class_column or caption_column was '\.left\.raw'"):
        open_source(str(tmp_path), image_column="left.raw", condition_column=".left.raw")


def test_an_extension_that_no_sample_has_is_answered_with_those_there_are(tmp_path, images):
    write_tar(tmp_path / "a.tar", pairs(images[:2]))
    message = (
        r"holds no conditions: no member of its tar files has \.cls; they have png, txt\. Name another as class_column "
        r"or caption_column \(--class-column, --caption-column\)$"
    )
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path), condition_column="cls")
    write_tar(tmp_path / "b.tar", [("0.png", images[0]), ("0.cls", b"1")])
    assert conditions(open_source(str(tmp_path), condition_column="cls")) == [None, None, 1]


def test_tars_in_a_store_give_their_conditions(bucket, images, tmp_path):
    members = [(f"{row:02}.png", images[row]) for row in range(9)]
    members += [(f"{row:02}.cls", str(row).encode()) for row in range(9)]
    write_tar(tmp_path / "0.tar", sorted(members))
    url = bucket.upload(tmp_path, "x")
    source = open_source(url, condition_column="cls")
    assert conditions(source) == list(range(9))
    assert conditions(again(source, url, condition_column="cls")) == list(range(9))


def test_joined_tars_in_a_store_are_read_to_the_end(bucket, images, tmp_path):
    content = ordinary(pairs(images[:9])) + bytes(3 << 19) + ordinary(pairs(images[9:57], 9)) + bytes(5 << 20)
    (tmp_path / "0.tar").write_bytes(content)
    url = bucket.upload(tmp_path, "x")
    source = open_source(url)
    assert [row.data for row in again(source, url).read(0, 57)] == images[:57]
    (tmp_path / "0.tar").write_bytes(content + b"x")
    with pytest.raises(DataError, match=r"x/0\.tar holds 1 bytes after its end mark"):
        open_source(bucket.upload(tmp_path, "x"))
