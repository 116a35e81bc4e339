"""A condition is what a model is told of an image: its class or its caption, one value a row.

In a table a condition is an integer or a string. From a list of strings, which data sets with several captions an
image have (COCO, Flickr30k), the first is taken. In a webdataset it is the content of one member of a sample.
"""

import re
from typing import Any

import pyarrow as pa

from volgrowth.errors import DataError
from volgrowth.sources.arrays import TEXT, dense, huggingface_features, texts
from volgrowth.sources.pixels.decoding import EXTENSIONS

OPTIONS = "class_column or caption_column"
"""The settings that name a condition, for messages: sources do not know which of the two the user gave."""
FLAGS = "--class-column, --caption-column"
"""The same as options of the command line."""
_CLASSES = frozenset({"cls", "cls2", "class"})
"""Extensions whose content webdataset takes for an integer."""
_STRUCTURED = frozenset(
    ("json", "jsn", "jsonl", "npy", "npz", "pyd", "pickle", "pkl", "pth", "ten", "tb", "mp", "msg", "cbor")
)
"""Extensions whose content is an object, in which a condition would have to be looked up."""
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


def check_condition_column(field: pa.Field, where: str) -> None:
    """Raise a DataError unless the column holds values that can be conditions.

    Args:
        field: name and type of the column.
        where: name of the data set, for the message.
    """
    kind = _dense(field.type)
    # Views of lists are no lists here: Arrow casts them wrongly.
    several = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not (_dense(kind.value_type) in TEXT if several else kind in TEXT or pa.types.is_integer(kind)):
        raise DataError(
            f"column {field.name!r} of {where} holds {field.type}, not conditions; a class is an integer or a string, "
            f"a caption is a string or the first of a list of strings: name another as {OPTIONS} ({FLAGS})"
        )


def conditions_of(column: pa.ChunkedArray) -> list[str | int | None]:
    """Return the conditions in a column that `check_condition_column` let pass, None for each row without one."""
    column = dense(column)
    if not pa.types.is_nested(column.type):
        return column.to_pylist() if pa.types.is_integer(column.type) else [*texts(column)]
    lists = column.cast(pa.large_list(pa.large_binary())).to_pylist()
    return [*texts(pa.chunked_array([[some[0] if some else None for some in lists]], pa.large_binary()))]


def class_names(schema: pa.Schema, column: str | None) -> tuple[str, ...] | None:
    """Return the names of the classes in a column that the metadata call a `datasets.ClassLabel`, else None."""
    feature: Any = huggingface_features(schema).get(column) if column else None
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return None
    names = feature.get("names")
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def condition_extension(column: str, where: str, image: str | None) -> str:
    """Return the extension, without its dot, of the members of a webdataset that hold conditions.

    Args:
        column: the extension as the user gave it.
        where: name of the data set, for the message.
        image: the extension that the user named for the images, if any.

    Raises:
        DataError: members of this extension hold something else.
    """
    extension = column.lower().lstrip(".")
    parts = re.split(r"[.:]", extension)
    if extension in ("", image) or f".{parts[-1]}" in EXTENSIONS or not _STRUCTURED.isdisjoint(parts):
        raise DataError(
            f"{where} is a webdataset, and {OPTIONS} was {column!r}: expected the extension of members that hold a "
            f"class or a caption and nothing else, such as cls or txt ({FLAGS}); a key inside a json is not looked up"
        )
    return extension


def condition_of(data: bytes, extension: str) -> str | int:
    """Return the condition that a member of a webdataset holds: a number if `cls` holds one, else the text."""
    text = data.decode("utf-8", "backslashreplace").rstrip("\r\n")
    number = extension.rpartition(".")[2] in _CLASSES and _INTEGER.fullmatch(text.strip())
    return int(number[0]) if number else text


def _dense(kind: pa.DataType) -> pa.DataType:
    # A dictionary of string views cannot be decoded.
    fits = pa.types.is_dictionary(kind) and not pa.types.is_string_view(kind.value_type)
    return kind.value_type if fits else kind
