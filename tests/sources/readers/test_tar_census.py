"""Tars in which the image of a sample would be a guess, and what is left aside of the others."""

import random

import pytest

from tests.support.samples import digits, pairs, write_tar
from tests.support.tars import ordinary
from volgrowth.cli import run_command
from volgrowth.errors import DataError
from volgrowth.sources import open_source
from volgrowth.sources.readers import tar_census

IMAGES = digits(8)


def aside(source):
    return {each.kind: (each.count, each.why) for each in source.opened.left_aside}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            [f"{row}.{part}" for row in range(4) for part in ("depth.png", "image.png", "txt")],
            "4 of 4 samples in .*a.tar hold more than one image (depth.png 4, image.png 4): name the extension of "
            "those to audit as image_column (--image-column); a key ends at the first dot of a name, so that "
            "0.depth.png is the image depth.png of the sample 0: if each image is a sample of its own, rename them so "
            "that the only dot stands before the ending",
        ),
        (
            ["0.jpg", "0.png", "1.jpg", "2.jpg"],
            "1 of 3 samples in .*a.tar hold more than one image (jpg 3, png 1): name the extension of those to audit "
            "as image_column (--image-column)",
        ),
        (
            [f"d/22.{row:02}.png" for row in range(60)],
            "1 of 1 sample in .*a.tar hold more than one image (00.png 1, 01.png 1, 02.png 1, 03.png 1, 04.png 1, "
            "05.png 1, 06.png 1, 07.png 1, 52 more): name .* so that d/22.00.png is the image 00.png of the sample "
            "d/22: .*",
        ),
    ],
    ids=["two of each", "two of one", "dots in names"],
)
def test_several_images_in_a_sample_are_refused_until_one_is_named(tmp_path, names, message):
    members = [(name, IMAGES[0]) for name in names]
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path))
    parts = message.split(".*")
    said = str(caught.value)
    assert said.startswith(parts[0])
    assert said.endswith(parts[-1])
    assert all(part in said for part in parts)
    found = names[1].partition(".")[2]
    source = open_source(str(tmp_path), image_column=found)
    count = sum(name.partition(".")[2] == found for name in names)
    images = sum(name.endswith(("png", "jpg")) for name in names)
    assert sum(row.error is None for row in source.read(0, source.num_rows)) == count
    assert aside(source)["unused image"][0] == images - count


@pytest.mark.parametrize(
    "names",
    [
        ["0.jpg", "0.json", "0.txt", "1.jpg", "1.json", "1.txt"],
        ["0.jpg", "1.png", "2.JPG", "3.webp"],
        ["0.seg.png", "1.seg.png"],
        ["0.1.png", "1.5.png", "2.9.png"],
        ["a/0.png", "b/0.png"],
    ],
)
def test_one_image_a_sample_is_read_whatever_its_extension(tmp_path, names):
    write_tar(tmp_path / "a.tar", [(name, IMAGES[0]) for name in names])
    source = open_source(str(tmp_path))
    keys = {name.partition(".")[0] for name in names}
    assert [row.error for row in source.read(0, source.num_rows)] == [None] * len(keys)
    assert "unused image" not in aside(source)


def test_what_is_left_aside_is_counted(tmp_path):
    members = [
        *[("README", b"x"), ("._0.png", b"x"), ("__meta__/x.json", b"{}")],
        *pairs(IMAGES[:3]),
        *[("0003.txt", b"alone"), ("0003.json", b"{}"), ("0004.png", IMAGES[4])],
    ]
    write_tar(tmp_path / "a.tar", members)
    write_tar(tmp_path / "b.tar", pairs(IMAGES[:2]))
    source = open_source(str(tmp_path))
    assert aside(source) == {
        "other member": (7, "txt 6, json 1"),
        "keyless member": (3, "no sample's: no dot in the name, or one at its beginning, or __meta__"),
        "imageless sample": (1, "a row without a score each"),
    }
    assert source.opened.said == "7 rows of 2 tar files; images from members ending in .png"
    assert aside(open_source(str(tmp_path), condition_column="txt"))["other member"] == (1, "json 1")


def test_extensions_are_told_apart_up_to_a_number(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_census, "_MOST_EXTENSIONS", 3)
    for part in "ab":
        others = [(f"{row}.{part}{row}", b"") for row in range(9)]
        images = [(f"{row}.{part}{row}.png", IMAGES[0]) for row in range(9)]
        write_tar(tmp_path / f"{part}.tar", sorted([*others, *images, ("9.cls", b"7")]))
    source = open_source(str(tmp_path), condition_column="cls")
    assert aside(source)["other member"][0] == 18
    assert source.num_rows == 20
    assert source.opened.columns["image"].startswith(".*.png")


def test_the_tar_is_named_of_which_something_is_said(tmp_path):
    write_tar(tmp_path / "a.tar", pairs(IMAGES))
    (tmp_path / "b.tar").write_bytes(ordinary(pairs(IMAGES)) * 2)
    said = {each.kind: (each.count, each.example) for each in open_source(str(tmp_path)).opened.left_aside}
    assert (said["inner end mark"], said["repeated key"]) == ((1, "b.tar"), (8, "b.tar"))


def shuffled(members, seed=1):
    return random.Random(seed).sample(members, len(members))


APART = {
    "captions before images": sorted(pairs(IMAGES), key=lambda member: member[0][-3:], reverse=True),
    "images before captions": sorted(pairs(IMAGES), key=lambda member: member[0][-3:]),
    "as the disk lists them": shuffled(pairs(IMAGES)),
    "one caption at the end": [*pairs(IMAGES)[1:], pairs(IMAGES)[0]],
    "a mask at the end": [*pairs(IMAGES), ("0000.mask.npy", b"x")],
    "twice": sorted(pairs(IMAGES), key=lambda member: member[0][-3:]) * 2,
}


@pytest.mark.parametrize("members", APART.values(), ids=APART)
def test_members_of_one_key_that_lie_apart_are_refused(tmp_path, members):
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=r"a\.tar has members of one key .* \(tar --sort=name -cf NEW\.tar \*\)$"):
        open_source(str(tmp_path))
    write_tar(tmp_path / "a.tar", sorted(dict(members).items()))
    assert open_source(str(tmp_path)).num_rows == 8


def test_whole_samples_of_one_key_are_rows_each_and_said(tmp_path):
    """A member that was added again, and archives that number from the same key."""
    write_tar(tmp_path / "a.tar", [*pairs(IMAGES), *pairs(IMAGES[:3])])
    source = open_source(str(tmp_path))
    assert [row.data for row in source.read(0, 11)] == [*IMAGES, *IMAGES[:3]]
    assert aside(source)["repeated key"][0] == 3


def test_the_command_refuses_with_2_and_opens_with_an_extension(tmp_path, tiny_model, capsys):
    members = [(f"{row}.{part}.png", image) for row, image in enumerate(IMAGES) for part in ("depth", "photo")]
    write_tar(tmp_path / "a.tar", members)
    command = [
        "audit",
        str(tiny_model),
        str(tmp_path / "a.tar"),
        "--output",
        str(tmp_path / "out"),
        "--engine",
        "local",
    ]
    assert run_command(command) == 2
    assert "8 of 8 samples" in capsys.readouterr().err
    assert run_command([*command, "--image-column", "photo.png"]) == 0
    said = capsys.readouterr()
    assert "opened: 8 rows of 1 tar file; images from members ending in .photo.png" in said.out + said.err
    assert "left aside: 8 unused images (depth.png 8)" in said.out + said.err
