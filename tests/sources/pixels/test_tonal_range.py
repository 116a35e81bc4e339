"""Each format and depth gives the pixels of its 8-bit twin, a PNG of the same picture."""

import io
import itertools
import struct
import sys
import zlib
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from tests.support.samples import encode_image
from tests.support.tiff_files import packed, tiff
from volgrowth.records import Status
from volgrowth.sources import BadImage, decode_image

HEIGHT, WIDTH = SIZE = 48, 64
Y, X = np.mgrid[:HEIGHT, :WIDTH]
COLOR = np.stack([X * 4, Y * 5, (X + Y) * 2], -1).astype(np.uint8)
COLOR[10:20, 30:] = (250, 30, 90)
GREY = np.asarray(Image.fromarray(COLOR).convert("L"))


def twin(pixels, channels=None):
    """The picture as an 8-bit PNG, decoded."""
    channels = channels or (1 if pixels.ndim == 2 else 3)
    return decode_image(encode_image(Image.fromarray(pixels)), (channels, *SIZE), 10**6).astype(int)


def decoded(data, channels):
    return decode_image(data, (channels, *SIZE), 10**6).astype(int)


def status(data, channels=1):
    with pytest.raises(BadImage) as caught:
        decoded(data, channels)
    return caught.value.status


def levels(pixels, top):
    """The picture in whole numbers 0..top. For tops that 255 divides, as 65535, nothing is lost."""
    return (pixels.astype(np.int64) * top + 127) // 255


def step(top):
    """How far rounding to 0..top moves a value of 0..255, and 1 for rounding back."""
    return 0 if top % 255 == 0 else 255 / top / 2 + 1


def planes(pixels):
    return pixels.reshape(*SIZE, -1).transpose(2, 0, 1)


@pytest.mark.parametrize(("order", "packing"), itertools.product("<>", (1, 8)))
@pytest.mark.parametrize("white", ["is 0", "is high"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_a_grey_tiff_of_any_depth_and_polarity_is_its_twin_or_refused(bits, white, order, packing):
    top = 2**bits - 1
    values = levels(GREY, top)
    data = tiff(planes(values if white == "is high" else top - values), bits, white == "is high", order, packing)
    refused = (bits == 12 and (order == ">" or white == "is 0")) or (bits == 16 and order == ">" and white == "is 0")
    if refused:  # Pillow opens none of these
        assert status(data) is Status.UNDECODABLE
    else:
        assert np.abs(decoded(data, 1) - twin(GREY)).max() <= step(top)


@pytest.mark.parametrize(("bits", "order", "planar", "packing"), itertools.product((8, 16), "<>", (1, 2), (1, 8)))
def test_a_colour_tiff_in_one_plane_or_three_is_its_twin_or_refused(bits, order, planar, packing):
    data = tiff(planes(levels(COLOR, 2**bits - 1)), bits, 2, order, packing, planar)
    if (bits, planar, packing) == (16, 2, 1):  # Pillow gives stripes
        assert status(data, 3) is Status.UNDECODABLE
    else:
        np.testing.assert_array_equal(decoded(data, 3), twin(COLOR))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_cmyk_tiff_is_its_twin(bits):
    inks = np.concatenate([255 - COLOR, np.zeros((*SIZE, 1), np.uint8)], -1)
    data = tiff(planes(levels(inks, 2**bits - 1)), bits, 5)
    np.testing.assert_array_equal(decoded(data, 3), twin(COLOR))
    assert status(tiff(planes(inks), 8, 5, t332=[2]), 3) is Status.WRONG_SHAPE


@pytest.mark.parametrize("packing", [1, 8])
def test_a_ycbcr_tiff_is_its_twin_unless_it_leaves_out_colours(packing):
    values = planes(np.asarray(Image.fromarray(COLOR).convert("YCbCr")))
    data = tiff(values, 8, 6, packing=packing, t530=[1, 1])
    assert np.abs(decoded(data, 3) - twin(COLOR)).max() <= 3  # YCbCr of 8 bits does not hold every RGB
    if packing == 1:
        assert status(tiff(values, 8, 6, t530=[2, 2]), 3) is Status.UNDECODABLE


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_in_lab_is_the_grey_of_srgb(channels):
    values = np.zeros((3, *SIZE), int)
    values[0] = 128  # L* of 50.2
    assert np.abs(decoded(tiff(values, 8, 8), channels) - 119).max() <= 1


@pytest.mark.parametrize("scale", [1, 257])
def test_colour_maps_of_16_bits_and_those_written_with_8_are_read(scale):
    colors = (np.tile(np.arange(255, -1, -1), 3) * scale).tolist()
    np.testing.assert_array_equal(decoded(tiff(planes(255 - GREY), 8, 3, t320=colors), 1), twin(GREY))


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_opacity_in_a_tiff_is_left_out(extra):
    """As unknown samples, multiplied into the colours (opaque here), or apart."""
    grey = np.stack([GREY, np.full_like(GREY, 255)], -1)
    np.testing.assert_array_equal(decoded(tiff(planes(grey), 8, 1, t338=[extra]), 1), twin(GREY))


@pytest.mark.parametrize("format_", [2, 3])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_signed_and_floating_samples_have_no_known_range(bits, format_):
    expected = {(8, 3): Status.UNDECODABLE, (16, 3): Status.UNDECODABLE}.get((bits, format_), Status.WRONG_SHAPE)
    assert status(tiff(planes(levels(GREY, 2**bits - 1)), bits, 1, t339=[format_])) is expected
    assert status(tiff(planes(levels(GREY, 2**32 - 1)), 32, 1)) is Status.WRONG_SHAPE


def test_a_preview_is_not_taken_for_the_picture_and_a_page_of_several_is():
    assert status(tiff(planes(GREY), 8, 1, t254=[1])) is Status.WRONG_SHAPE
    np.testing.assert_array_equal(decoded(tiff(planes(GREY), 8, 1, t254=[2]), 1), twin(GREY))


def png(values, bits, kind, *chunks):
    rows = b"".join(b"\0" + packed(row.reshape(1, -1), bits, ">") for row in values.astype(np.int64))
    header = (b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, kind, 0, 0, 0))
    parts = [header, *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    written = [struct.pack(">I", len(b)) + t + b + struct.pack(">I", zlib.crc32(t + b)) for t, b in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("chunk", [None, (b"sBIT", b"\1"), (b"gAMA", struct.pack(">I", 10_000)), (b"tRNS", b"\0\0")])
def test_a_grey_png_of_any_depth_is_its_twin(bits, chunk):
    """Significant bits change nothing: samples are scaled to the depth by whoever writes. Gamma is not applied."""
    data = png(levels(GREY, 2**bits - 1), bits, 0, *filter(None, [chunk]))
    assert np.abs(decoded(data, 1) - twin(GREY)).max() <= step(2**bits - 1)


@pytest.mark.parametrize(("kind", "channels"), [(4, 1), (2, 3), (6, 3)])
def test_16_bits_with_colour_or_opacity_in_a_png_are_its_twin(kind, channels):
    pixels = GREY[..., None] if kind == 4 else COLOR
    opaque = np.full((*SIZE, 1 if kind in (4, 6) else 0), 65535)
    data = png(np.concatenate([levels(pixels, 65535), opaque], -1), 16, kind)
    np.testing.assert_array_equal(decoded(data, channels), twin(GREY if kind == 4 else COLOR))


@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
@pytest.mark.parametrize("top", [1, 15, 100, 255, 1023, 4095, 65535])
def test_a_pgm_or_ppm_with_any_largest_value_is_its_twin(kind, top):
    values = levels(GREY if kind in ("P2", "P5") else COLOR, top)
    plain = " ".join(map(str, values.ravel())).encode()
    body = plain if kind in ("P2", "P3") else values.astype(">u2" if top > 255 else np.uint8).tobytes()
    data = b"%s # a comment\n%d %d\n# another\n%d\n" % (kind.encode(), WIDTH, HEIGHT, top) + body
    picture = GREY if kind in ("P2", "P5") else COLOR
    assert np.abs(decoded(data, 1 if kind in ("P2", "P5") else 3) - twin(picture)).max() <= step(top)
    with Image.open(io.BytesIO(data)) as pillows:  # ours are Pillow's numbers
        own = np.asarray(pillows).astype(int)
    own = (own + 128) // 257 if pillows.mode.startswith("I") else own
    np.testing.assert_array_equal(decoded(data, 1 if own.ndim == 2 else 3), planes(own))
    if kind in ("P5", "P6"):
        assert status(data[:-1], 3) is Status.UNDECODABLE


def jpeg2000(values, bits, stored):
    """A JPEG 2000 without loss whose header says `bits`: of another depth than Pillow writes it with.

    Values are stored around the middle of their range, so that it is moved.
    """
    data = bytearray(encode_image(Image.fromarray((values + 2 ** (stored - 1) - 2 ** (bits - 1))
                     .astype(f"u{stored // 8}")), "JPEG2000", no_jp2=True))  # fmt: skip
    start = data.index(b"\xff\x51")
    for component in range(struct.unpack_from(">H", data, start + 38)[0]):
        data[start + 40 + 3 * component] = bits - 1
    return bytes(data)


@pytest.mark.parametrize("bits", [1, 4, 7, 8, 9, 12, 16])
def test_a_jpeg_2000_of_any_depth_is_its_twin(bits):
    values = levels(GREY, 2**bits - 1)
    data = jpeg2000(values, bits, 16 if bits > 8 else 8)
    assert np.abs(decoded(data, 1) - twin(GREY)).max() <= step(2**bits - 1)
    if bits < 8:
        color = jpeg2000(levels(COLOR, 2**bits - 1), bits, 8)
        assert np.abs(decoded(color, 3) - twin(COLOR)).max() <= step(2**bits - 1)


@pytest.mark.parametrize("masks", [(), (0xF800, 0x7E0, 0x1F)])
def test_a_bmp_of_16_bits_is_its_twin(masks):
    """With 5 bits a colour, or 6 for green: Pillow scales them to 255."""
    red, green, blue = (COLOR[..., k].astype(int) for k in range(3))
    low = 6 if masks else 5
    values = (red >> 3 << (5 + low)) | (green >> (8 - low) << 5) | (blue >> 3)
    body, table = values.astype("<u2").tobytes(), struct.pack(f"<{len(masks)}I", *masks)
    size = (40, WIDTH, -HEIGHT, 1, 16, 3 if masks else 0, len(body), 0, 0, 0, 0)
    head = b"BM" + struct.pack("<IHHI", 54 + len(table) + len(body), 0, 0, 54 + len(table))
    data = head + struct.pack("<IiiHHIIiiII", *size) + table + body
    assert np.abs(decoded(data, 3) - twin(COLOR)).max() <= 8


@pytest.mark.parametrize("options", [{}, {"compression": "tga_rle"}])
@pytest.mark.parametrize("footer", [True, False])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_tga_is_its_twin(mode, footer, options):
    data = encode_image(Image.fromarray(COLOR).convert(mode), "TGA", **options)
    data = data if footer else data[:-26]
    np.testing.assert_array_equal(decoded(data, 3), twin(GREY if mode == "L" else COLOR, 3))
    assert status(data[: len(data) // 2], 3) is Status.UNDECODABLE


LOSSY: dict[str, tuple[str, str, dict[str, Any]]] = {
    "JPEG": ("JPEG", "RGB", {"quality": 98, "subsampling": 0}),
    "JPEG, progressive": ("JPEG", "RGB", {"quality": 98, "subsampling": 0, "progressive": True}),
    "JPEG, inverted CMYK": ("JPEG", "CMYK", {"quality": 98}),
    "JPEG in TIFF": ("TIFF", "RGB", {"compression": "jpeg", "quality": 98}),
    "WebP": ("WEBP", "RGB", {"quality": 100}),
    "AVIF": ("AVIF", "RGB", {"quality": 98, "subsampling": "4:4:4"}),
    "JPEG 2000": ("JPEG2000", "RGB", {"irreversible": True, "quality_mode": "dB", "quality_layers": [45]}),
}


@pytest.mark.parametrize("name", LOSSY)
def test_a_format_with_loss_is_near_to_its_twin(name):
    """At their best qualities, WebP with half of the colours: within 4 of 255 in the mean. A negative is 100 away."""
    format_, mode, options = LOSSY[name]
    data = encode_image(Image.fromarray(COLOR).convert(mode), format_, **options)
    assert np.abs(decoded(data, 3) - twin(COLOR)).mean() < 4


@pytest.mark.parametrize("format_", ["WEBP", "GIF"])
def test_transparent_pixels_keep_their_colours(format_):
    """Opacity is left out and not blended: what lies below a transparent pixel is what a training script sees."""
    mode = Image.fromarray(COLOR).quantize(32)
    picture = np.asarray(mode.convert("RGB"))
    image = mode if format_ == "GIF" else Image.fromarray(picture)
    if format_ == "WEBP":
        image.putalpha(77)
    options = {"transparency": 3} if format_ == "GIF" else {"lossless": True, "exact": True}
    np.testing.assert_array_equal(decoded(encode_image(image, format_, **options), 3), twin(picture))


def heif(pixels, bits):
    pillow_heif.options.SAVE_HDR_TO_12_BIT = bits == 12
    stream = io.BytesIO()
    deep = pixels if bits == 8 else levels(pixels, 65535).astype(np.uint16)
    mode = ("L" if pixels.ndim == 2 else "RGB") + ("" if bits == 8 else ";16")
    image = pillow_heif.from_bytes(mode=mode, size=(WIDTH, HEIGHT), data=deep.tobytes())
    image.save(stream, quality=-1, chroma=444)
    return stream.getvalue()


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("pixels", [GREY, COLOR], ids=["grey", "colour"])
def test_a_heic_of_any_depth_is_its_twin(pixels, bits):
    """The coding is without loss, but for YCbCr."""
    data = heif(pixels, bits)
    channels = 1 if pixels.ndim == 2 else 3
    assert np.abs(decoded(data, channels) - twin(pixels)).max() <= 2
    assert status(data[: len(data) // 2], channels) is Status.UNDECODABLE
    assert "HEIF" not in Image.OPEN  # nothing global is set


def test_a_heic_without_the_extra_says_which_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(BadImage, match=r"pip install 'volgrowth\[heif\]'"):
        decoded(heif(GREY, 8), 1)
