"""The same images in every kind of data set."""

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from tests.support.tars import ordinary
from volgrowth.sources import Listing, Row, Source, open_source

CUTS = st.tuples(*[st.integers(0, 57)] * 3).map(sorted)
"""Where to cut the rows of a source with 57."""
CAPTIONS = [f"a digit, the {number}th" if number % 5 else None for number in range(57)]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encode(pixels: np.ndarray, format_: str = "PNG", **options: Any) -> bytes:
    return encode_image(Image.fromarray(pixels), format_, **options)


def encode_image(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def digits(count: int) -> list[bytes]:
    images = load_digits().images[:count]
    return [encode((image * 15).astype(np.uint8)) for image in images]


def values(images: list[bytes]) -> pa.Array:
    return pa.array([{"bytes": data, "path": None} for data in images], type=IMAGE)


def write_parquet(path: Path, images: list[bytes], group: int = 10, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": values(images), **columns}), path, row_group_size=group)


def write_folder(folder: Path, images: list[bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, data in enumerate(images):
        (folder / f"{index:04}.png").write_bytes(data)


def dataset(images: list[bytes], **columns: list[Any]) -> Any:
    rows = {"image": [{"bytes": data, "path": None} for data in images], **columns}
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], format_: int = tarfile.USTAR_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ordinary(members, format_))


def pairs(images: list[bytes], first: int = 0) -> list[tuple[str, bytes]]:
    """Members of a webdataset: a caption and an image each."""
    return [
        member
        for number, data in enumerate(images, first)
        for member in ((f"{number:04}.txt", b"a digit"), (f"{number:04}.png", data))
    ]


def in_parts(source: Source, cuts: Sequence[int]) -> list[Row]:
    """Rows from the first cut to the last, which are the same read at once and in two parts."""
    a, b, c = cuts
    whole = list(source.read(a, c))
    assert [*source.read(a, b), *source.read(b, c)] == whole
    assert [row.row for row in whole] == list(range(a, c))
    return whole


def conditions(source: Source) -> list[str | int | None]:
    return [row.condition for row in source.read(0, source.num_rows)]


def again(source: Source, data: str, **options: Any) -> Source:
    """As a worker opens it: from a listing that was stored."""
    chunks = list(source.listing.chunks())
    return open_source(data, listing=Listing.stored(source.listing.describe(), chunks.__getitem__), **options)
