import numpy as np
import pytest
from PIL import Image

from tests.sources.pixels.test_decoding import photograph, status
from tests.support.samples import encode_image
from volgrowth.records import Status
from volgrowth.sources import decode_image
from volgrowth.sources.pixels.jpeg_scans import MAX_SCANS

SHAPE = (3, 64, 64)
KINDS = [{}, {"progressive": True}, {"subsampling": 0, "restart_marker_blocks": 3}]


def jpeg(options):
    return encode_image(photograph(64, 64), "JPEG", quality=90, **options)


def pixels(data):
    return decode_image(data, SHAPE, 10**6)


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("after", [b"", b"\xff", b"\0" * 99])
def test_a_jpeg_that_lacks_only_its_end_mark_is_whole(options, after):
    data = jpeg(options)
    assert data.endswith(b"\xff\xd9")
    np.testing.assert_array_equal(pixels(data[:-2] + after), pixels(data))


@pytest.mark.parametrize("options", KINDS)
def test_what_comes_after_the_end_mark_is_left_aside(options):
    data = jpeg(options)
    np.testing.assert_array_equal(pixels(data + b"\0" * 500 + b"trailing"), pixels(data))


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("missing", [4, 5, 9, 30, 300])
def test_a_jpeg_that_lacks_a_part_of_its_last_row_is_undecodable(options, missing):
    assert status(jpeg(options)[:-missing], SHAPE) is Status.UNDECODABLE


def test_a_progressive_jpeg_that_lacks_its_last_scans_whole_is_undecodable():
    data = jpeg({"progressive": True})
    for _ in range(3):
        data = data[: data.rindex(b"\xff\xda")]
        assert status(data, SHAPE) is Status.UNDECODABLE


def with_scans(count):
    data = encode_image(Image.new("L", (64, 64), 100), "JPEG", progressive=True)
    first, last = data.index(b"\xff\xda"), data.rindex(b"\xff\xda")
    there = data[first:].count(b"\xff\xda")
    return data[:last] + data[last:-2] * (count - there + 1) + b"\xff\xd9"


def test_a_jpeg_of_very_many_scans_is_too_large():
    assert (pixels(with_scans(MAX_SCANS)) == 100).all()
    assert status(with_scans(MAX_SCANS + 1), SHAPE) is Status.TOO_LARGE


def test_what_looks_like_scans_in_and_after_a_picture_is_not_counted():
    data = jpeg({"exif": b"Exif\0\0" + b"\xff\xda" * 900})
    np.testing.assert_array_equal(pixels(data + b"\xff\xda" * 900), pixels(jpeg({})))
