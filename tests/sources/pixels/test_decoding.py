import contextlib
import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from tests.support.samples import encode, encode_image
from volgrowth.records import Status
from volgrowth.sources import BadImage, decode_image, to_unit

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
LIMIT = 10**6


def status(data, shape=(3, 12, 16), limit=LIMIT):
    with pytest.raises(BadImage) as caught:
        decode_image(data, shape, limit)
    assert caught.value.message
    return caught.value.status


def rgb(image):
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def png_header(width, height):
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunks + struct.pack(">I", 4) + b"IDAT" + b"1234" + b"\0\0\0\0"


@pytest.mark.parametrize("format_", ["PNG", "BMP", "TIFF", "PPM"])
def test_an_image_of_the_models_size_is_left_alone(format_):
    pixels = decode_image(encode(PIXELS, format_), (3, 12, 16), LIMIT)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, PIXELS.transpose(2, 0, 1))


@pytest.mark.parametrize("format_", ["JPEG", "WEBP", "GIF", "JPEG2000", "AVIF"])
def test_formats_with_loss_are_decoded(format_):
    smooth = np.full_like(PIXELS, 100)
    pixels = decode_image(encode(smooth, format_), (3, 12, 16), LIMIT).astype(int)
    assert np.abs(pixels - 100).max() <= 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_modes_are_converted_as_pillow_does(mode, channels):
    image = Image.fromarray(PIXELS).convert(mode)
    if mode == "RGBA":
        image.putalpha(77)
    expected = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(12, 16, channels)
    pixels = decode_image(encode_image(image), (channels, 12, 16), LIMIT)
    np.testing.assert_array_equal(pixels, expected.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_other_colours_are_converted(mode):
    bands = [Image.fromarray(PIXELS[..., k % 3].copy()) for k in range(len(Image.new(mode, (1, 1)).getbands()))]
    image = Image.merge(mode, bands)
    np.testing.assert_array_equal(decode_image(encode_image(image, "TIFF"), (3, 12, 16), LIMIT), rgb(image))


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_transparent_palettes_keep_their_colours_without_a_warning(transparency):
    image = Image.fromarray(PIXELS).convert("P")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = decode_image(encode_image(image, transparency=transparency), (3, 12, 16), LIMIT)
    np.testing.assert_array_equal(pixels, rgb(image))


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_and_not_clipped(format_):
    values = np.linspace(0, 65535, 12 * 16).astype(np.uint16).reshape(12, 16)
    pixels = decode_image(encode(values, format_), (1, 12, 16), LIMIT)[0]
    np.testing.assert_array_equal(pixels, np.round(values / 257))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_numbers_of_unknown_range_are_of_the_wrong_shape(kind):
    assert status(encode(np.ones((12, 16), kind), "TIFF")) is Status.WRONG_SHAPE


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    image = Image.fromarray(PIXELS)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode_image(image, exif=exif)
    turned = image.copy()
    turned.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(turned)
    shape = (3, upright.height, upright.width)
    np.testing.assert_array_equal(decode_image(data, shape, LIMIT), rgb(upright))


def test_broken_exif_is_taken_as_upright():
    data = encode(PIXELS, exif=b"Exif\0\0garbage that is no TIFF header")
    np.testing.assert_array_equal(decode_image(data, (3, 12, 16), LIMIT), PIXELS.transpose(2, 0, 1))


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (16, 12), colour) for colour in ("red", "blue", "lime")]
    data = encode_image(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_image(data, (3, 12, 16), LIMIT), rgb(frames[0]))


def test_other_sizes_are_cropped_at_the_centre_and_resized():
    image = Image.fromarray(PIXELS).resize((90, 40))
    expected = ImageOps.fit(image, (16, 12), method=Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode_image(encode_image(image), (3, 12, 16), LIMIT), rgb(expected))


def photograph(width, height, seed=0):
    """Noise with the spectrum of photographs, and a bright edge."""
    random = np.random.default_rng(seed)
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    f[0, 0] = np.inf
    waves = [np.fft.ifft2(np.fft.fft2(random.standard_normal((height, width))) / f).real for _ in range(3)]
    pixels = 128 + 45 * np.stack(waves, -1) / np.std(waves)
    pixels[height // 3 : height // 2, width // 4 :] = (250, 30, 90)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def loaded_sizes(monkeypatch):
    """Fills with the size of each image whose pixels were decoded."""
    sizes, load = list[tuple[int, int]](), JpegImageFile.load

    def noted(image):
        sizes.append(image.size)
        return load(image)

    monkeypatch.setattr(JpegImageFile, "load", noted)
    return sizes


@pytest.mark.parametrize(
    ("size", "decoded"),
    [((1024, 512), (128, 64)), ((500, 250), (250, 125)), ((130, 129), (65, 65)), ((127, 300), (127, 300))],
)
def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(size, decoded, monkeypatch):
    """Of (16, 16) with REDUCED 4: at the smallest part whose sides are both 64 or more."""
    image = photograph(*size)
    data = encode_image(image, "JPEG", quality=90)
    whole = ImageOps.fit(Image.open(io.BytesIO(data)), (16, 16), method=Image.Resampling.BILINEAR)
    sizes = loaded_sizes(monkeypatch)
    moved = np.abs(decode_image(data, (3, 16, 16), LIMIT).astype(int) - rgb(whole).astype(int))
    assert sizes[0] == decoded
    assert moved.max() <= (5 if decoded != size else 0)
    assert moved.mean() <= 0.5


def test_a_turned_jpeg_is_decoded_at_a_part_of_its_size_too(monkeypatch):
    image, exif = photograph(512, 256), Image.Exif()
    exif[0x0112] = 6
    data = encode_image(image, "JPEG", quality=90, exif=exif)
    sizes = loaded_sizes(monkeypatch)
    pixels = decode_image(data, (3, 32, 16), LIMIT)
    assert sizes[0] == (256, 128)
    upright = ImageOps.fit(image.transpose(Image.Transpose.ROTATE_270), (16, 32), method=Image.Resampling.BILINEAR)
    assert np.abs(pixels.astype(int) - rgb(upright).astype(int)).mean() < 3  # and the loss of JPEG


def test_other_formats_are_decoded_whole():
    image = photograph(256, 256)
    expected = ImageOps.fit(image, (16, 16), method=Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode_image(encode_image(image), (3, 16, 16), LIMIT), rgb(expected))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_jpeg_is_undecodable_at_a_part_of_its_size_too(share):
    data = encode_image(photograph(512, 512), "JPEG")
    assert status(data[: int(len(data) * share)], (3, 16, 16)) is Status.UNDECODABLE


@pytest.mark.parametrize(("size", "fits"), [((64, 16), True), ((16, 64), True), ((65, 16), False), ((1, 5), False)])
def test_an_aspect_more_than_four_times_off_is_of_the_wrong_shape(size, fits):
    data = encode_image(Image.new("RGB", size))
    if fits:
        assert decode_image(data, (3, 8, 8), LIMIT).shape == (3, 8, 8)
    else:
        assert status(data, (3, 8, 8)) is Status.WRONG_SHAPE


@pytest.mark.parametrize("side", [12_000, 50_000])
@pytest.mark.parametrize("limit", [100, 89_478_485])
def test_a_bomb_is_too_large_by_its_header_without_a_warning(side, limit):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert status(png_header(side, side), limit=limit) is Status.TOO_LARGE


def test_the_limit_is_ours_and_not_pillows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode_image(encode(PIXELS), (3, 12, 16), 12 * 16).shape == (3, 12, 16)
    assert status(encode(PIXELS), limit=12 * 16 - 1) is Status.TOO_LARGE


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6])
def test_a_truncated_file_is_undecodable(format_, share):
    large = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(large, format_)
    assert status(data[: int(len(data) * share)], (3, 64, 64)) is Status.UNDECODABLE


@pytest.mark.parametrize("data", [None, b"", b"\0", b"garbage", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_no_image_is_undecodable(data):
    assert status(data) is Status.UNDECODABLE


@given(data=st.data(), format_=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"]))
def test_whatever_the_bytes_the_answer_is_pixels_or_a_bad_image(data, format_):
    encoded = bytearray(encode(PIXELS, format_))
    for _ in range(data.draw(st.integers(1, 6))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(BadImage):
            assert decode_image(bytes(encoded), (3, 12, 16), LIMIT).shape == (3, 12, 16)


@pytest.mark.parametrize("shape", [(2, 8, 8), (4, 8, 8), (3, 0, 8), (8, 8)])
def test_a_shape_that_no_image_has_is_the_callers_error(shape):
    with pytest.raises(ValueError, match="image_shape"):
        decode_image(encode(PIXELS), shape, LIMIT)


def test_threads_agree():
    data = [encode(PIXELS, format_) for format_ in ("PNG", "JPEG", "WEBP", "TIFF")] * 10
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda one: decode_image(one, (3, 8, 8), LIMIT), data))
    for pixels, one in zip(together, data, strict=True):
        np.testing.assert_array_equal(pixels, decode_image(one, (3, 8, 8), LIMIT))


def test_a_bad_image_says_its_status_and_reason():
    assert str(BadImage(Status.TOO_LARGE, "why")) == "too_large: why"


def test_to_unit_maps_0_to_minus_1_and_255_to_1():
    units = to_unit(np.array([0, 51, 255], np.uint8))
    assert units.dtype == np.float32
    np.testing.assert_allclose(units, [-1, -0.6, 1], rtol=1e-6)
