import hashlib
import io

import imagehash
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from volgrowth.records import SCORES
from volgrowth.sources import features, features_of_each, to_unit
from volgrowth.sources.pixels.features import BLOCK_BYTES

NAMES = ["png_bytes", "variance", "total_variation", "mean", "edge_density", "phash", "content_hash"]
images = st.tuples(st.sampled_from([1, 3]), st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: hnp.arrays(np.uint8, shape)
)


@given(pixels=images)
def test_statistics_are_those_of_the_units(pixels):
    x = to_unit(pixels).astype(np.float64)
    steps = np.abs(np.concatenate([np.diff(x, axis=1).ravel(), np.diff(x, axis=2).ravel()]))
    got = features(pixels)
    assert got["mean"] == pytest.approx(x.mean(), abs=1e-6)
    assert got["variance"] == pytest.approx(x.var(), abs=1e-6)
    assert got["total_variation"] == pytest.approx(steps.mean() if steps.size else 0, abs=1e-6)
    assert got["edge_density"] == pytest.approx((steps > 0.2).mean() if steps.size else 0)


@given(pixels=images)
def test_the_values_fit_their_columns(pixels):
    got = features(pixels)
    assert list(got) == NAMES
    row = pa.table({name: [got[name]] for name in NAMES}, schema=pa.schema([SCORES.field(name) for name in NAMES]))
    assert row.num_rows == 1


def test_an_output_of_an_older_version_goes_on_with_sizes_of_png_files():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 7), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0).copy()).save(stream, "PNG", compress_level=6)
    assert features(pixels, png_method=1)["png_bytes"] == len(stream.getvalue())


@given(pixels=images)
def test_the_png_size_is_the_entropy_of_steps_to_the_left_and_the_upper_neighbour(pixels):
    left = np.concatenate([pixels[:, :, :1], np.diff(pixels, axis=2)], axis=2)  # of bytes, which wrap around
    up = np.concatenate([pixels[:, :1], np.diff(pixels, axis=1)], axis=1)
    shares = [np.unique(steps, return_counts=True)[1] / pixels.size for steps in (left, up)]
    entropy = -pixels.size * np.mean([(share * np.log2(share)).sum() for share in shares]) / 8
    assert 0 <= features(pixels)["png_bytes"] - 57 - entropy + 1e-5 < 1 + 2e-5


def test_plain_images_are_small_and_noise_is_large():
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8), (3, 64, 64))
    flat, rising, random = (features(np.ascontiguousarray(each))["png_bytes"] for each in (noise * 0, ramp, noise))
    assert flat == 57 < rising < 0.5 * noise.size < 0.98 * noise.size < random < noise.size + 57


@given(
    batch=st.tuples(st.integers(1, 5), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9)).flatmap(
        lambda shape: hnp.arrays(np.uint8, shape)
    )
)
def test_features_do_not_depend_on_the_images_beside(batch):
    assert features_of_each(list(batch)) == [features(image) for image in batch]


def test_large_images_are_measured_one_after_another():
    batch = np.random.default_rng(0).integers(0, 256, (3, 3, 300, 310), dtype=np.uint8)
    assert batch[0].size > BLOCK_BYTES
    assert features_of_each(list(batch)) == [features(image) for image in batch]
    assert features_of_each([]) == []


def test_images_of_several_shapes_are_refused():
    with pytest.raises(ValueError, match="all of one shape"):
        features_of_each([np.zeros((1, 8, 8), np.uint8), np.zeros((1, 8, 9), np.uint8)])


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 9), (1, 9, 1), (3, 31, 17)])
@pytest.mark.parametrize("value", [0, 255, None])
def test_statistics_are_exact(shape, value):
    """Sums of squares and of steps in small integers are those in large ones, up to the last bit."""
    random = np.random.default_rng(0).integers(0, 256, shape)
    values = random if value is None else np.full(shape, value)
    size, total, squares = values.size, int(values.sum()), int((values**2).sum())
    steps = np.abs(np.concatenate([np.diff(values, axis=1).ravel(), np.diff(values, axis=2).ravel()]))
    got = features(values.astype(np.uint8))
    assert got["variance"] == (size * squares - total * total) / size**2 / 127.5**2
    assert got["total_variation"] == int(steps.sum()) / max(steps.size, 1) / 127.5
    assert got["edge_density"] == int((steps > 25.5).sum()) / max(steps.size, 1)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 32, 32), (3, 32, 32), (3, 17, 40), (3, 1, 1), (1, 200, 70)])
def test_the_perceptual_hash_is_imagehashs(shape):
    random = np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)
    smooth = (random[:, :, :1] // 2 + random[..., :1] // 4).astype(np.uint8)
    for batch in (random, smooth, random // 128 * 255):
        pictures = [Image.fromarray(each[0] if len(each) == 1 else each.transpose(1, 2, 0).copy()) for each in batch]
        found = [each["phash"] for each in features_of_each(list(batch))]
        assert found == [int(str(imagehash.phash(picture)), 16) for picture in pictures]


@pytest.mark.parametrize("value", range(15, 256, 40))
def test_flat_images_share_their_perceptual_hash(value):
    got = features(np.full((1, 8, 8), value, np.uint8))
    assert got["phash"] == 1 << 63
    assert got["variance"] == got["total_variation"] == got["edge_density"] == 0


def test_the_content_hash_follows_pixels_and_shape():
    flat = np.zeros((1, 4, 9), np.uint8)
    dotted = flat.copy()
    dotted[0, 0, 0] = 1
    shapes = [flat, flat.reshape(1, 9, 4), flat.reshape(1, 6, 6), dotted]
    assert len({features(pixels)["content_hash"] for pixels in shapes}) == 4
    assert features(flat)["content_hash"] == features(flat.copy())["content_hash"]
    digest = hashlib.blake2b(np.array([1, 4, 9], "<i8").tobytes() + flat.tobytes()).digest()
    assert features(flat)["content_hash"] == int.from_bytes(digest[:8], "big")


def test_memory_layout_makes_no_difference():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8).transpose(2, 0, 1)
    assert features(pixels) == features(np.ascontiguousarray(pixels))


@pytest.mark.parametrize("pixels", [np.zeros((8, 8), np.uint8), np.zeros((2, 8, 8), np.uint8), np.zeros((1, 8, 8))])
def test_other_shapes_and_types_are_refused(pixels):
    with pytest.raises(ValueError, match="uint8"):
        features(pixels)
