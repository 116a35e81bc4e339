"""Curated tars: every member of the samples that stay, byte for byte, whatever the tars are like."""

import itertools
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.curation.conftest import ROWS
from tests.curation.test_applying import edited, pictures
from tests.support.samples import pairs
from tests.support.tars import header, ordinary, pax
from volgrowth.curation import apply_list
from volgrowth.curation.kept import Kept
from volgrowth.curation.stages import FolderStage
from volgrowth.curation.tars import count_samples, write_kept_tars
from volgrowth.errors import DataError, OutputError
from volgrowth.sources import open_source
from volgrowth.sources.readers.tar_members import TarMembers
from volgrowth.sources.readers.webdataset import WebDatasetSource


def raw(path: Path) -> list[bytes]:
    """All bytes of each member, headers included."""
    content = path.read_bytes()
    with open(path, "rb") as stream:
        return [content[member.start : member.stop] for member in TarMembers(stream, len(content))]


@pytest.fixture
def curated(tmp_path):
    """Drops rows of a tar of these bytes, and returns the tar before and after."""
    number = itertools.count()

    def curated(content, drop, weights=None):
        before, after = tmp_path / f"{next(number)}.tar", tmp_path / str(next(number))
        before.write_bytes(content)
        source = open_source(str(before))
        assert isinstance(source, WebDatasetSource)
        mask = ~np.isin(np.arange(source.num_rows), drop)
        stage = FolderStage(after)
        write_kept_tars(source, stage, Kept(mask, weights and np.array(weights)))
        assert stage.rows == count_samples(after / before.name) == mask.sum()
        return before, after / before.name

    return curated


def test_joined_archives_become_one_that_every_reader_reads_to_the_end(run, images, tmp_path):
    parts = [ordinary(pairs(images[start : start + 30], start), format_=2) for start in (0, 30)]
    comment, drop = pax(tarfile.XGLTYPE, comment="second"), [1, 29, 30, 66]
    content = parts[0] + bytes(700 * 512) + comment + parts[1] + ordinary(pairs(images[60:], 60))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.tar").write_bytes(content)
    audit = run(tmp_path / "data", tmp_path / "out")
    assert apply_list(audit, edited(audit, drop), str(tmp_path / "new")).rows == ROWS - 4
    before, after = tmp_path / "data/a.tar", tmp_path / "new/a.tar"
    assert raw(after) == [part for part in raw(before) if part == comment or int(part[:4]) not in drop]
    with tarfile.open(after) as tar:
        assert len(tar.getnames()) == 2 * (ROWS - 4)
    assert pictures(after) == [image for row, image in enumerate(images) if row not in drop]


def test_what_belongs_to_no_sample_stays(curated, images):
    stray = header("d", b"", tarfile.DIRTYPE) + header("README", b"read me")
    content = b"".join(stray + header(f"d/{row}.png", image) for row, image in enumerate(images)) + bytes(1024)
    _, after = curated(content, [0, 5], [0.5] * ROWS)
    with tarfile.open(after) as tar:
        names = tar.getnames()
    assert (names.count("d"), names.count("README"), names.count("d/0.png")) == (ROWS, ROWS, 0)
    assert names[4:8] == ["d/1.png", "d", "README", "d/1.volgrowth_weight.json"]
    assert len(pictures(after)) == ROWS - 2


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_link_to_a_sample_that_is_dropped_is_refused(curated, images, kind):
    target = "./d/0.png" if kind == tarfile.LNKTYPE else "0.png"
    link = header("d/9.png", b"", kind, target=target)
    content = b"".join(header(f"d/{row}.png", image) for row, image in enumerate(images[:9])) + link
    content += bytes(1024)
    with pytest.raises(
        DataError, match=r"d/9\.png in .*\.tar stays and is a .* link to d/0\.png, which the list drops"
    ):
        curated(content, [0])
    for drop in ([0, 9], [1]):
        before, after = curated(content, drop)
        assert raw(after) == [member for row, member in enumerate(raw(before)) if row not in drop]


def test_samples_of_one_key_are_not_mixed(curated, images):
    """Without the sample between them, the caption of the second would join the first."""
    content = ordinary([("a.png", images[0]), ("b.png", images[1]), ("a.txt", b"x"), ("a.png", images[2])])
    with pytest.raises(OutputError, match=r"do not read back .* samples of one key come to stand side by side"):
        curated(content, [1])
    before, after = curated(content, [0])
    assert raw(after) == raw(before)[1:]


def test_headers_of_gnu_tar_and_sparse_files_are_copied(curated, images, tmp_path):
    names = [f"{'long' * 40}/{row:03}.png" for row in range(9)]
    for name, image in zip(names, images, strict=False):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(image)
    os.truncate(tmp_path / names[7], 1 << 30)
    write = ["tar", "-C", tmp_path, "--sparse", "--format=pax", "-cf", tmp_path / "a.tar", *names]
    if subprocess.run(write, check=False).returncode:
        pytest.skip("GNU tar is not installed")
    before, after = curated((tmp_path / "a.tar").read_bytes(), [3])
    assert raw(after) == [member for row, member in enumerate(raw(before)) if row != 3]
    assert after.stat().st_size < 1 << 20
