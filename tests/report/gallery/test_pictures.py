import io

import numpy as np
import pytest
from PIL import Image

from volgrowth.report.gallery.pictures import LONGEST, data_url, thumbnail


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 16), (1, 1, 1)])
def test_small_images_keep_every_pixel(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    seen = np.asarray(Image.open(io.BytesIO(thumbnail(pixels))))
    assert np.array_equal(seen[None] if shape[0] == 1 else seen.transpose(2, 0, 1), pixels)
    assert data_url(thumbnail(pixels)).startswith("data:image/png;base64,")


@pytest.mark.parametrize("shape", [(3, 512, 256), (1, 65, 65), (3, 2048, 2048)])
def test_large_images_are_small_files(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    picture = thumbnail(pixels)
    assert len(picture) < 30_000
    assert max(Image.open(io.BytesIO(picture)).size) == min(LONGEST, max(shape))
    assert data_url(picture).startswith("data:image/jpeg;base64,")
