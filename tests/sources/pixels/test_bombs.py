"""Small files that keep a decoder busy, or fill the memory, end with a status."""

import struct
import zlib

import numpy as np
import pytest

from tests.sources.pixels.test_decoding import PIXELS, photograph, status
from tests.sources.pixels.test_tonal_range import heif
from tests.support.samples import encode, encode_image
from volgrowth.records import Status
from volgrowth.sources import BadImage, decode_image
from volgrowth.sources.pixels.bombs import MAX_TILES

LIMIT = 89_478_485


def outcome(data, shape=(3, 12, 16)):
    """The pixels, or the status if there are none."""
    try:
        return decode_image(data, shape, LIMIT)
    except BadImage as bad:
        return bad.status


def ends(data):
    """Whatever is wrong is the file's own fault, and not the reader's."""
    found = outcome(data)
    return found is Status.UNDECODABLE or found.shape == (3, 12, 16)


def jpeg2000(size, tile):
    """A JPEG 2000 of 64 x 64 pixels in four tiles, whose header says other sizes."""
    data = bytearray(encode_image(photograph(64, 64), "JPEG2000", no_jp2=True, tile_size=(32, 32)))
    start = data.index(b"\xff\x51")
    for offset, value in ((6, size), (10, size), (22, tile), (26, tile)):
        struct.pack_into(">I", data, start + offset, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("size", "tile", "expected"),
    [
        (64, 32, None),
        (9000, 36, Status.TOO_LARGE),  # 62,500 tiles took 700 MB and were decoded to black
        (9000, 1, Status.TOO_LARGE),
        (64, 16, Status.UNDECODABLE),  # 4 of 16 tiles: three quarters would be black
        (64, 0, Status.UNDECODABLE),
    ],
)
def test_tiles_of_a_jpeg_2000_are_few_and_all_there(size, tile, expected):
    assert MAX_TILES == 10_000
    if expected:
        assert status(jpeg2000(size, tile), (3, 64, 64), LIMIT) is expected
    else:
        assert decode_image(jpeg2000(size, tile), (3, 64, 64), LIMIT).std() > 10


@pytest.mark.parametrize("options", [{"no_jp2": True}, {}])
def test_what_looks_like_a_jpeg_2000_inside_a_file_is_none(options):
    """Pixels stored as they are hold any bytes; boxes before the code do, too."""
    code = encode(PIXELS, "JPEG2000", no_jp2=True)[:200]
    raw = np.frombuffer(code, np.uint8)[:198].reshape(6, 11, 3)
    for format_ in ("BMP", "PPM", "TIFF"):
        np.testing.assert_array_equal(decode_image(encode(raw, format_), (3, 6, 11), LIMIT), raw.transpose(2, 0, 1))
    data = encode(PIXELS, "JPEG2000", comment=code[:60], **options)
    np.testing.assert_array_equal(decode_image(data, (3, 12, 16), LIMIT), PIXELS.transpose(2, 0, 1))


def test_fill_bytes_of_a_jpeg_are_few():
    data = encode(PIXELS, "JPEG")
    whole = decode_image(data, (3, 12, 16), LIMIT)
    np.testing.assert_array_equal(decode_image(data[:2] + b"\xff" * 900 + data[2:], (3, 12, 16), LIMIT), whole)
    np.testing.assert_array_equal(decode_image(data + b"\xff" * 10**6, (3, 12, 16), LIMIT), whole)
    assert status(data[:2] + b"\xff" * 10**7 + data[2:], limit=LIMIT) is Status.UNDECODABLE


def test_comments_in_a_plain_ppm_cost_their_bytes_and_not_their_square():
    body = b" ".join(b"%d" % value for value in PIXELS.ravel())
    data = b"P3 16 12 255\n" + b"#\n" * 10**6 + body  # minutes in Pillow
    np.testing.assert_array_equal(decode_image(data, (3, 12, 16), LIMIT), PIXELS.transpose(2, 0, 1))


def test_a_deep_ppm_is_read_as_an_array():
    """Pillow reads such values one by one: a minute for a photograph."""
    data = b"P6 3000 3000 1023\n" + bytes(3000 * 3000 * 6)
    assert (decode_image(data, (3, 8, 8), LIMIT) == 0).all()


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP", b"iTXt"])
@pytest.mark.parametrize("where", [33, -12])
def test_packed_texts_and_profiles_of_a_png_are_bounded(name, where):
    data, packed = encode(PIXELS), zlib.compress(bytes(10**8))
    body = b"k\0\1\0\0\0" if name == b"iTXt" else b"k\0\0"
    assert ends(data[:where] + chunk(name, body + packed) + data[where:])


def webp(width, height, frames=1):
    picture = encode(PIXELS, "WEBP", lossless=True)[12:]
    frame = bytes(6) + (15).to_bytes(3, "little") + (11).to_bytes(3, "little") + b"\x64\0\0\0" + picture
    frame += b"\0" * (len(frame) % 2)
    canvas = b"\2\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    parts = [(b"VP8X", canvas), (b"ANIM", bytes(6))] + [(b"ANMF", frame)] * frames
    body = b"WEBP" + b"".join(name + struct.pack("<I", len(part)) + part for name, part in parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("size", [(16_383, 16_383), (65_535, 65_535), (1 << 24, 255)])
def test_a_huge_canvas_of_a_webp_is_too_large(size):
    assert status(webp(*size), limit=LIMIT) is Status.TOO_LARGE


def test_of_very_many_frames_the_first_is_decoded():
    expected = decode_image(webp(16, 12), (3, 12, 16), LIMIT)
    np.testing.assert_array_equal(decode_image(webp(16, 12, 50_000), (3, 12, 16), LIMIT), expected)
    gif = encode(PIXELS, "GIF")
    image = gif.index(b"\x2c")
    many = gif[:-1] + gif[image:-1] * 5_000 + gif[-1:]
    np.testing.assert_array_equal(decode_image(many, (3, 12, 16), LIMIT), decode_image(gif, (3, 12, 16), LIMIT))


def bmp_rle(width, height, body):
    size = (40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    head = b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078)
    return head + struct.pack("<IiiHHIIiiII", *size) + bytes(1024) + body


@pytest.mark.parametrize("body", [b"\0\0" * 9001, b"\0\2\xff\xff" * 9, b"\xff\0", b""])
def test_a_short_run_length_coding_of_a_large_bmp_ends(body):
    assert ends(bmp_rle(2000, 2000, body))


def test_a_tiff_whose_pages_go_in_a_circle_is_its_first_page():
    data = bytearray(encode(PIXELS, "TIFF"))
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    struct.pack_into("<I", data, start + 2 + 12 * count, start)
    np.testing.assert_array_equal(decode_image(bytes(data), (3, 12, 16), LIMIT), PIXELS.transpose(2, 0, 1))


@pytest.mark.filterwarnings("ignore:Tag data larger:UserWarning")
@pytest.mark.parametrize("tag", range(12))
def test_a_tiff_whose_tag_has_billions_of_values_ends(tag):
    data = bytearray(encode(PIXELS, "TIFF"))
    start = struct.unpack_from("<I", data, 4)[0]
    struct.pack_into("<I", data, start + 2 + 12 * tag + 4, 2**32 - 1)
    assert ends(bytes(data))


@pytest.mark.parametrize(
    "format_", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "HEIF"]
)
def test_of_a_cut_file_whole_pixels_come_or_none(format_):
    """Whatever is cut off: never a picture of which a part is missing."""
    whole = np.asarray(photograph(64, 48))
    data = heif(whole, 8) if format_ == "HEIF" else encode(whole, format_)
    expected = decode_image(data, (3, 48, 64), LIMIT)
    for length in [*range(len(data) - 40, len(data)), *range(0, len(data), len(data) // 40 + 1)]:
        found = outcome(data[:length], (3, 48, 64))
        assert found is Status.UNDECODABLE or np.array_equal(found, expected)


@pytest.mark.parametrize("format_", ["JPEG2000", "AVIF", "TGA", "HEIF", "lacks its end"])
def test_flipped_bytes_give_pixels_or_a_bad_image(format_):
    random = np.random.default_rng(0)
    data = heif(PIXELS_LARGE, 8) if format_ == "HEIF" else encode(PIXELS_LARGE, FORMAT.get(format_, format_))
    data = data[:-2] if format_ == "lacks its end" else data
    for _ in range(100):
        flipped = bytearray(data)
        for at in random.integers(0, len(flipped), random.integers(1, 5)):
            flipped[at] = random.integers(256)
        found = outcome(bytes(flipped))
        assert isinstance(found, Status) or found.shape == (3, 12, 16)


PIXELS_LARGE = np.asarray(photograph(64, 48))
FORMAT = {"lacks its end": "JPEG"}
