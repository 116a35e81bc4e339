"""Text and metadata as Arrow holds them.

Strings are taken out of Arrow as bytes and decoded here, because one invalid UTF-8 character must not lose a
whole batch.
"""

import json
from typing import Any

import pyarrow as pa


def texts(column: pa.ChunkedArray) -> list[str | None]:
    """The values of a column as text, whatever they are; None where there is none."""
    column = dense(column)
    if is_text(column.type):
        column = column.cast(pa.large_binary())
    return [_text(value) for value in column.to_pylist()]


def dense(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without the dictionary that it may be encoded with."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def is_text(kind: pa.DataType) -> bool:
    """Whether values of the type are strings, of whatever layout."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def huggingface_features(schema: pa.Schema) -> dict[str, Any]:
    """What the Hugging Face tools wrote down of the columns of a table, by their names; empty without such."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
