import os
import tracemalloc

import pytest

from tests.support.samples import write_folder
from volgrowth.errors import DataError
from volgrowth.sources import Listing, SourceFile, open_source
from volgrowth.sources.ordering import Sorted
from volgrowth.storage.places import LocalPlace


def names(source):
    return [row.source for row in source.read(0, source.num_rows)]


def test_images_are_found_below_sorted_and_hidden_files_left_out(tmp_path, images):
    for name in (
        "b/2.PNG",
        "a.png",
        "b/1.jpeg",
        "c.txt",
        ".hidden.png",
        ".cache/x.png",
        "b.png",
        "d.png/e.webp",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(images[0])
    source = open_source(str(tmp_path))
    assert names(source) == ["a.png", "b.png", "b/1.jpeg", "b/2.PNG", "d.png/e.webp"]


def test_links_are_followed_but_not_in_circles(tmp_path, images):
    write_folder(tmp_path / "elsewhere", images[:2])
    write_folder(tmp_path / "data", images[2:3])
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "circle").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "file.png").symlink_to(tmp_path / "elsewhere" / "0000.png")
    source = open_source(str(tmp_path / "data"))
    # the file behind file.png and linked/0000.png is one
    assert names(source) == ["0000.png", "file.png", "linked/0001.png"]
    assert [(each.kind, each.count, each.example) for each in source.left_aside] == [("link", 2, "circle")]


def test_files_that_cannot_be_read_are_rows(tmp_path, images):
    write_folder(tmp_path, images[:1])
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    rows = list(open_source(str(tmp_path)).read(0, 4))
    assert [row.data for row in rows] == [images[0], None, b"", None]
    assert [row.error for row in rows] == [
        None,
        "the file does not exist",
        "the file is empty",
        "not a regular file",
    ]


def test_a_file_that_changed_or_went_since_it_was_listed_is_an_error(tmp_path, images):
    write_folder(tmp_path, images[:3])
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere")
    source = open_source(str(tmp_path))
    (tmp_path / "0001.png").unlink()
    (tmp_path / "0002.png").write_bytes(b"x")
    assert next(source.read(0, 1)).data == images[0]
    for row, now in ((1, "nothing"), (2, "1 bytes")):
        with pytest.raises(DataError, match=f"000{row}.png holds {now}, and .* when .* it has changed"):
            list(source.read(row, 3))
    (tmp_path / "nowhere").write_bytes(images[0])
    with pytest.raises(DataError, match=r"broken\.png holds .* bytes, and 0 when"):
        list(source.read(3, 4))


def test_a_huge_folder_is_walked_in_bounded_memory(tmp_path):
    peaks = []
    for folder, count in (("warm", 1_000), ("small", 3_000), ("large", 9_000)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            os.mknod(tmp_path / folder / f"{number * 7919 % count:06}-{'x' * 40}.png")
        tracemalloc.start()
        files = Sorted.of(LocalPlace(tmp_path / folder).walk(), 750)
        listing = Listing.build("folder", (SourceFile(file.name, file.size, 1) for file in files), 750)
        assert all(row == first for row, (_, first) in enumerate(listing.entries(0, count)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert listing.num_rows == count
    assert peaks[2] < 1.3 * peaks[1]


def test_a_name_that_is_not_utf_8_stays_readable(tmp_path, images):
    path = os.fsencode(tmp_path) + b"/\xff.png"
    try:
        with open(path, "wb") as file:
            file.write(images[0])
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    source = open_source(str(tmp_path))
    (row,) = source.read(0, 1)
    assert row.data == images[0]
    assert row.source == r"\xff.png"
    assert source.fingerprint


def test_the_fingerprint_follows_every_file(tmp_path, images):
    write_folder(tmp_path, images[:3])
    seen = {open_source(str(tmp_path)).fingerprint}
    os.utime(tmp_path / "0000.png", (0, 0))
    (tmp_path / "notes.txt").write_text("no image")
    assert open_source(str(tmp_path)).fingerprint in seen
    (tmp_path / "0003.png").write_bytes(images[3])
    seen.add(open_source(str(tmp_path)).fingerprint)
    (tmp_path / "0003.png").rename(tmp_path / "0004.png")
    seen.add(open_source(str(tmp_path)).fingerprint)
    (tmp_path / "0004.png").write_bytes(images[3] + b"x")
    seen.add(open_source(str(tmp_path)).fingerprint)
    (tmp_path / "0000.png").unlink()
    seen.add(open_source(str(tmp_path)).fingerprint)
    assert len(seen) == 5


def test_a_split_is_a_folder_in_it(tmp_path, images):
    write_folder(tmp_path / "train", images[:3])
    write_folder(tmp_path / "test", images[:2])
    with pytest.raises(DataError, match=r"has several splits \(test, train\): name the one .*/\*\*/\*"):
        open_source(str(tmp_path))
    assert names(open_source(f"{tmp_path}/**/*")) == [
        "test/0000.png",
        "test/0001.png",
        *(f"train/000{n}.png" for n in range(3)),
    ]
    source = open_source(str(tmp_path), split="test")
    assert names(source) == ["test/0000.png", "test/0001.png"]
    assert [str(each) for each in source.left_aside] == ["3 image files (not of split test)"]
    with pytest.raises(DataError, match=r"no split 'dev'.* it has: test, train"):
        open_source(str(tmp_path), split="dev")
    with pytest.raises(DataError, match=r"no split 'dev'.* it has: none. Leave split \(--split\) out"):
        open_source(str(tmp_path / "train"), split="dev")


def test_a_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"holds no images: it holds 1 \.txt file; expected .*\.png"):
        open_source(str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, images):
    write_folder(tmp_path / "open", images[:1])
    (tmp_path / "closed").mkdir(mode=0)
    for data in (tmp_path, f"{tmp_path}/*/*.png", f"{tmp_path}/**/*.png"):
        with pytest.raises(DataError, match="closed cannot be listed"):
            open_source(str(data))
