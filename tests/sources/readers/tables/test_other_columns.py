"""Images in a form that is not read are named with a conversion, which works."""

import base64
import io
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest

from tests.support.samples import IMAGE, digits, encode, values
from volgrowth.errors import DataError
from volgrowth.records import Status
from volgrowth.sources import BadImage, decode_image, open_source
from volgrowth.sources.pixels.other_content import describe_content

IMAGES = digits(3)
PIXELS = np.stack([np.asarray(PIL.Image.open(io.BytesIO(data))) for data in IMAGES])
TEXTS = [base64.b64encode(data).decode() for data in IMAGES]
MODULES = {"base64": base64, "datasets": datasets, "numpy": np, "PIL": PIL, "pyarrow": pa}


def opened(tmp_path: Path, column: Any, **options: Any) -> Any:
    pq.write_table(pa.table({"label": range(3), "picture": column}), tmp_path / "a.parquet")
    return open_source(str(tmp_path / "a.parquet"), **options)


def advised(message: str, **names: Any) -> Any:
    """What the advice in a message computes, when it is typed as it stands."""
    begin = message.index(next(start for start in ("pyarrow.table(", "table.append", "dataset.") if start in message))
    end = min(
        at
        for word in (", then ", " with ", " and pyarrow", " for ", " where ")
        if (at := message.find(word, begin)) > 0
    )
    return eval(message[begin:end], {**MODULES, **names})


def pictures(data: Any) -> list[np.ndarray]:
    source = open_source(str(data))
    return [decode_image(row.data, (1, 8, 8), 100)[0] for row in source.read(0, source.num_rows)]


def refusal(tmp_path: Path, column: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        opened(tmp_path, column, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


COLUMNS = {
    "base64 text": (pa.array(TEXTS), "holds images as base64 text: decode them"),
    "encoded base64 text": (pa.array(TEXTS).dictionary_encode(), "holds images as base64 text: decode them"),
    "data URLs": (pa.array(["data:image/png;base64," + text for text in TEXTS]), "holds images as data: URLs: decode"),
    "arrays": (pa.array(PIXELS.tolist()), "holds arrays of numbers, not encoded images: encode them"),
}


@pytest.mark.parametrize(("column", "message"), COLUMNS.values(), ids=COLUMNS)
def test_what_a_column_holds_is_told_and_the_conversion_works(tmp_path, column, message):
    said = refusal(tmp_path, column, image_column="picture")
    assert f"column 'picture' of {tmp_path}/a.parquet {message}" in said
    dataset = datasets.Dataset(pa.table({"picture": column.cast(pa.string()) if "64" in message else column}))
    if "URLs" in message:
        dataset = datasets.Dataset(pa.table({"picture": column}))
    advised(said, dataset=dataset).save_to_disk(str(tmp_path / "new"))
    assert np.array_equal(pictures(tmp_path / "new"), PIXELS)


@pytest.mark.parametrize("name", ["base64 text", "data URLs"])
def test_images_as_text_are_told_though_no_column_was_named(tmp_path, name):
    column, message = COLUMNS[name]
    assert message in refusal(tmp_path, column)


@pytest.mark.parametrize("kind", [IMAGE, pa.binary()], ids=str)
def test_lists_of_images_become_rows_of_their_own(tmp_path, kind):
    flat = values(IMAGES) if kind == IMAGE else pa.array(IMAGES)
    column = pa.ListArray.from_arrays(pa.array([0, 2, 2, 3]), flat)
    for options in ({}, {"image_column": "picture"}):
        said = refusal(tmp_path, column, **options)
        assert "holds lists of images: write each image as a row of its own" in said
    table = pq.read_table(tmp_path / "a.parquet")
    pq.write_table(advised(said, table=table), tmp_path / "new.parquet")
    assert np.array_equal(pictures(tmp_path / "new.parquet"), PIXELS)


def test_paths_as_text_are_put_in_by_what_is_advised(tmp_path, monkeypatch):
    (tmp_path / "0.png").write_bytes(IMAGES[0])
    (tmp_path / "1.PNG").write_bytes(IMAGES[1])
    (tmp_path / "2.jpeg").write_bytes(IMAGES[2])
    column = pa.array(["0.png", str(tmp_path / "1.PNG"), "2.jpeg"])
    for options in ({}, {"image_column": "picture"}):
        said = refusal(tmp_path, column, **options)
        assert "holds paths as text, not images" in said
    monkeypatch.chdir(tmp_path)
    dataset = advised(said, dataset=datasets.Dataset(pa.table({"picture": column})))
    dataset.save_to_disk("saved")
    (tmp_path / "0.png").unlink()
    assert np.array_equal(pictures(tmp_path / "saved"), PIXELS)


def test_arrays_that_the_hub_tools_mark_are_told_without_a_name(tmp_path):
    features = datasets.Features({"picture": datasets.Array2D((8, 8), "uint8")})
    marked = datasets.Dataset.from_dict({"picture": PIXELS}, features=features)
    marked.save_to_disk(str(tmp_path / "saved"))
    marked.to_parquet(str(tmp_path / "a.parquet"))
    for name in ("saved", "a.parquet"):
        with pytest.raises(DataError, match=r"column 'picture' .* holds arrays of numbers, not encoded images"):
            open_source(str(tmp_path / name))
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(PIXELS)
    assert "holds arrays of numbers" in refusal(tmp_path, tensors)


def test_bytes_as_lists_of_numbers_are_told(tmp_path):
    column = pa.array([list(data) for data in IMAGES], pa.list_(pa.uint8()))
    said = refusal(tmp_path, column, image_column="picture")
    assert "or bytes(row['picture']) if they are the bytes of image files" in said


def test_images_in_a_struct_are_told_and_flattening_gives_them(tmp_path):
    column = pa.StructArray.from_arrays([values(IMAGES), pa.array(range(3))], names=["image", "width"])
    said = refusal(tmp_path, column)
    assert "holds a struct with images inside" in said
    pq.write_table(advised(said, table=pq.read_table(tmp_path / "a.parquet")), tmp_path / "new.parquet")
    source = open_source(str(tmp_path / "new.parquet"))
    assert [row.data for row in source.read(0, 3)] == IMAGES


@pytest.mark.parametrize("column", [["a cat", "b.txt", None], [[0.1, 0.2]] * 3])
def test_captions_and_embeddings_are_not_taken_for_images(tmp_path, column):
    pq.write_table(pa.table({"label": range(3), "told": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="is a data set without images; it has the columns label, told"):
        open_source(str(tmp_path / "a.parquet"))


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (npy(PIXELS[0]), r"a NumPy array \(\.npy\), not an encoded image: encode it with PIL"),
        (pickle.dumps(PIXELS[0]), "a pickle, which is never opened"),
        (b"PK\x03\x04rest", "a zip archive, as torch.save"),
        (TEXTS[0].encode(), "an image as base64 text: decode it with base64"),
        (b"data:image/png;base64," + TEXTS[0].encode(), "an image as base64 text"),
        (b"<!DOCTYPE html><html>gone", "a web page, not an image"),
        (b'<?xml version="1.0"?><svg/>', r"a drawing \(SVG\)"),
        (b"https://example.org/a.png", "a URL, which is not fetched"),
        (b"\x1f\x8b rest", "compressed with gzip"),
        (b"plain", "not an image of a known format"),
    ],
)
def test_bytes_that_are_no_image_say_what_they_are(cell, said):
    with pytest.raises(BadImage, match=said) as caught:
        decode_image(cell, (1, 8, 8), 100)
    assert caught.value.status == Status.UNDECODABLE


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_images_are_not_taken_for_anything_else(format_):
    data = encode(PIXELS[0], format_)
    assert describe_content(data) is None
    assert decode_image(data, (1, 8, 8), 100).shape == (1, 8, 8)
