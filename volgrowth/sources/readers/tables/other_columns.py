"""Columns that hold images in a form that is not read, and the sentence that says how to convert each of them.

The type of a column tells lists, arrays and structs; of strings the first values tell base64, paths and URLs.
"""

import re
from collections.abc import Callable

import pyarrow as pa

from volgrowth.sources.arrays import texts
from volgrowth.sources.pixels.decoding import EXTENSIONS
from volgrowth.sources.pixels.other_content import BASE64
from volgrowth.sources.readers.tables.table_types import image_fields, is_bytes, is_several, is_text
from volgrowth.storage.urls import is_url

Peek = Callable[[str], pa.ChunkedArray]
"""Returns the first few values of a column; of an image column without their bytes, if `.path` is after its name."""

_ARRAYS = frozenset({"Array2D", "Array3D", "Array4D", "Array5D"})
_IMAGE_NAMES = frozenset({"image", "images", "img", "picture", "photo", "pixels", "pixel_values"})
_IMAGE_PATH = re.compile(rf"\S.*({'|'.join(map(re.escape, sorted(EXTENSIONS)))})", re.IGNORECASE | re.DOTALL)
_WRITE = "then write it with save_to_disk or to_parquet"


def conversion(field: pa.Field, feature: object, peek: Peek, named: bool) -> str | None:
    """Return what a column holds in place of encoded images and how to convert it; None if it looks like no images.

    Args:
        field: name and type of the column.
        feature: what the Hugging Face tools noted of it, if anything.
        peek: a look at its first values.
        named: whether the user named the column. Numbers in another column are taken for images only if its name says
            so.
    """
    kind, name = field.type, field.name
    if is_text(kind):
        return _of_text(name, [text or "" for text in texts(peek(name))])
    if is_several(kind) and (is_bytes(kind.value_type) or image_fields(kind.value_type)):
        return (
            f"lists of images: write each image as a row of its own, for instance pyarrow.table({{'image': "
            f"pyarrow.compute.list_flatten(table[{name!r}])}}) with pyarrow.parquet.write_table"
        )
    marked = isinstance(feature, dict) and feature.get("_type") in _ARRAYS
    if (
        marked
        or isinstance(kind, pa.FixedShapeTensorType)
        or (_is_numbers(kind) and (named or name.lower() in _IMAGE_NAMES))
    ):
        either = f", or bytes(row[{name!r}]) if they are the bytes of image files" if _innermost(kind) else ""
        return (
            f"arrays of numbers, not encoded images: encode them, for instance dataset.map(lambda row: {{'image': "
            f"PIL.Image.fromarray(numpy.asarray(row[{name!r}], 'uint8'))}}, remove_columns={name!r}) for values from 0 "
            f"to 255 with channels last{either}, {_WRITE}"
        )
    if pa.types.is_struct(kind) and not image_fields(kind) and not _is_marked(feature):
        inner = next((part.name for part in kind if is_bytes(part.type) or image_fields(part.type)), None)
        if inner is not None:
            return (
                f"a struct with images inside: make them a column of their own with {outward(name, inner)} and "
                "pyarrow.parquet.write_table"
            )
    return None


def outward(outer: str, inner: str) -> str:
    """Return the code that makes a field of a struct a column of its own."""
    name = f"{outer}.{inner}"
    return f"table.append_column({name!r}, pyarrow.compute.struct_field(table[{outer!r}], {inner!r}))"


def _of_text(name: str, values: list[str]) -> str | None:
    if any(is_url(value) for value in values):
        return (
            "URLs: a column of URLs is not fetched; download the images first (for instance with img2dataset) and "
            "audit the files"
        )
    encoded = next((value for value in values if BASE64.match(value.encode("utf-8", "replace"))), None)
    if encoded is not None:
        text = f"row[{name!r}]" + (".split(',')[1]" if encoded.startswith("data:") else "")
        return (
            f"images as {'data: URLs' if encoded.startswith('data:') else 'base64 text'}: decode them, for instance "
            f"dataset.map(lambda row: {{'image': base64.b64decode({text})}}, remove_columns={name!r})"
            f".cast_column('image', datasets.Image()), {_WRITE}"
        )
    if any(_IMAGE_PATH.fullmatch(value) for value in values):
        return (
            f"paths as text, not images: dataset.cast_column({name!r}, datasets.Image()) where the paths lead to the "
            "files, then save_to_disk, which puts the images in (to_parquet does not)"
        )
    return None


def _is_marked(feature: object) -> bool:
    """Return whether the Hugging Face tools noted a kind of data of its own, such as sound, which is a struct too."""
    return isinstance(feature, dict) and "_type" in feature and isinstance(feature["_type"], str)


def _is_numbers(kind: pa.DataType) -> bool:
    if not is_several(kind):
        return False
    while is_several(kind):
        kind = kind.value_type
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _innermost(kind: pa.DataType) -> bool:
    """Return whether a type is a list of bytes, each a number."""
    return is_several(kind) and kind.value_type in (pa.uint8(), pa.int8(), pa.int64(), pa.int32())
