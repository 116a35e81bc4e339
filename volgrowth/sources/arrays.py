"""Text and metadata as Arrow holds them.

Strings are taken out of Arrow as bytes and decoded here, because one invalid UTF-8 character must not lose a
whole batch.
"""

import json
from typing import Any

import pyarrow as pa

TEXT = frozenset({pa.string(), pa.large_string(), pa.string_view()})
"""The types of columns of strings."""
BINARY = frozenset({pa.binary(), pa.large_binary(), pa.binary_view()})
"""The types of columns of bytes, apart from those of one length."""


def texts(column: pa.ChunkedArray) -> list[str | None]:
    """Return the values of a column of any type as text, with None for null."""
    column = dense(column)
    if column.type in TEXT:
        column = column.cast(pa.large_binary())
    return [_text(value) for value in column.to_pylist()]


def dense(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column without the dictionary that it may be encoded with."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def huggingface_features(schema: pa.Schema) -> dict[str, Any]:
    """Return what the Hugging Face tools noted of the columns of a table, by name; nothing if they did not."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
