"""Columns of a table become rows: which column holds the images, and what each of its values says.

An image column is a struct of `bytes` and `path`, as the Hugging Face tools write it, or plain binary.
Strings are taken out of Arrow as bytes and decoded here, because one invalid UTF-8 character must not lose a
whole batch.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.errors import DataError
from volgrowth.sources.base import Row, content_id
from volgrowth.sources.places import Place, read_ahead
from volgrowth.storage import is_url

BATCH_ROWS = 64
"""Rows held in memory at a time: encoded photographs of some MB each must fit."""

Peek = Callable[[str], pa.ChunkedArray]
"""The first few values of a column; with `.path` after its name, of an image column, without their bytes."""


@dataclass(frozen=True)
class Columns:
    """The columns an audit reads."""

    image: str
    id: str | None = None

    @property
    def names(self) -> list[str]:
        """Their names, each once."""
        return list(dict.fromkeys([self.image, *([self.id] if self.id else [])]))


def choose_columns(
    schema: pa.Schema, image_column: str | None, id_column: str | None, where: str, peek: Peek
) -> Columns:
    """The image column (found by its type unless named) and the id column of a table.

    Raises:
        DataError: a named column does not exist or holds something else; no column or several hold images;
            the images are URLs.
    """
    names = _listed(schema.names)
    for option, name in (("image_column", image_column), ("id_column", id_column)):
        if name is not None and name not in schema.names:
            flag = "--" + option.replace("_", "-")
            raise DataError(f"{where} has no column {name!r}; it has: {names}. Pass one as {option} ({flag})")
    if id_column is not None and pa.types.is_nested(schema.field(id_column).type):
        kind = schema.field(id_column).type
        raise DataError(f"column {id_column!r} of {where} holds {kind}; an id column holds strings or integers")
    image = image_column or _only_image_column(schema, where, peek)
    _check_image_column(schema.field(image), where, peek)
    return Columns(image, id_column)


def rows_of(table: pa.Table, columns: Columns, place: Place, row: int, file: str, position: int) -> Iterator[Row]:
    """One `Row` for each row of `table`, a stretch of a file's rows.

    Args:
        table: holds at least `columns.names`
        columns: which column is which
        place: folder that relative paths in the image column start from
        row: where the table begins in the frozen order
        file: name of the file that the rows come from
        position: where the table begins in that file
    """
    data, paths = _values(table.column(columns.image))
    ids = _texts(table.column(columns.id)) if columns.id else [None] * len(data)

    def encode(index: int) -> tuple[bytes | None, str | None]:
        return _encoded(data[index], paths[index], place)

    threads = place.threads if None in data else 1
    for index, (encoded, error) in enumerate(read_ahead(encode, range(table.num_rows), threads)):
        image_id = ids[index]
        if image_id is None:
            image_id = content_id(encoded or b"")
        yield Row(row + index, image_id, f"{file}#{position + index}", encoded, error)


def _only_image_column(schema: pa.Schema, where: str, peek: Peek) -> str:
    found = _image_columns(schema)
    if len(found) > 1:
        raise DataError(
            f"{where} has several image columns ({_listed(found)}): name one with image_column (--image-column)"
        )
    if not found:
        for field in schema:
            if _is_text(field.type):
                _refuse_urls(field, where, peek)
        raise DataError(
            f"{where} is a data set without images; it has the columns {_listed(schema.names)}, and an image "
            "column is a struct of bytes and path (datasets.Image) or binary"
        )
    return found[0]


def _image_columns(schema: pa.Schema) -> list[str]:
    """Columns the Hugging Face metadata calls images, or, without such, all of an image column's type."""
    found = [field.name for field in schema if _is_struct_of_image(field.type) or _is_binary(field.type)]
    features = _huggingface_features(schema)
    kinds = {name: features[name].get("_type") for name in found if isinstance(features.get(name), dict)}
    marked = [name for name in found if kinds.get(name) == "Image"]
    # Sound and video are structs of bytes and path as well.
    return marked or [name for name in found if kinds.get(name) in (None, "Value")]


def _huggingface_features(schema: pa.Schema) -> dict[str, Any]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _check_image_column(field: pa.Field, where: str, peek: Peek) -> None:
    if _is_binary(field.type):
        return
    if _is_text(field.type) or "path" in _fields(field.type):
        _refuse_urls(field, where, peek)
    if not _is_struct_of_image(field.type):
        raise DataError(
            f"column {field.name!r} of {where} holds {field.type}, not images; an image column is a struct "
            "of bytes and path (datasets.Image) or binary: name another with image_column (--image-column)"
        )


def _refuse_urls(field: pa.Field, where: str, peek: Peek) -> None:
    if _is_text(field.type):
        texts = _texts(peek(field.name))
        found = any(text is not None and is_url(text) for text in texts)
    else:
        # The bytes of eight photographs are looked at only where a path is a URL: it may be no more than a note.
        found = any(text is not None and is_url(text) for text in _values(peek(f"{field.name}.path"))[1]) and any(
            text is not None and data is None and is_url(text)
            for data, text in zip(*_values(peek(field.name)), strict=True)
        )
    if found:
        raise DataError(
            f"column {field.name!r} of {where} holds URLs: a column of URLs is not fetched; download the images "
            "first (for instance with img2dataset) and audit the files"
        )


def _encoded(data: bytes | None, path: str | None, place: Place) -> tuple[bytes | None, str | None]:
    if data is not None:
        return data, None if data else "the value holds no bytes"
    if not path:
        return None, "the value is null: neither bytes nor a path"
    if is_url(path):
        return None, "the value is a URL, which is not fetched; download first"
    return place.read(path)


def _values(column: pa.ChunkedArray) -> tuple[list[bytes | None], list[str | None]]:
    """Bytes and paths of an image column, None where there is none."""
    nothing: list[Any] = [None] * len(column)
    fields = _fields(column.type)
    if not fields:
        return column.to_pylist(), nothing
    data = pc.struct_field(column, "bytes").to_pylist() if "bytes" in fields else nothing
    paths = _texts(pc.struct_field(column, "path")) if "path" in fields else nothing
    return data, paths


def _fields(kind: pa.DataType) -> set[str]:
    """Of an image column that is a struct."""
    return {field.name for field in kind} if _is_struct_of_image(kind) else set()


def _texts(column: pa.ChunkedArray) -> list[str | None]:
    if _is_text(column.type):
        column = column.cast(pa.large_binary())
    return [_text(value) for value in column.to_pylist()]


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _is_struct_of_image(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind) or not kind.num_fields:
        return False
    types = {field.name: field.type for field in kind}
    if not set(types) <= {"bytes", "path"}:
        return False
    path_fits = _is_text(types["path"]) or pa.types.is_null(types["path"]) if "path" in types else True
    # A column of paths alone is written with bytes of type null.
    bytes_fit = _is_binary(types["bytes"]) or pa.types.is_null(types["bytes"]) if "bytes" in types else True
    return path_fits and bytes_fit


def _is_binary(kind: pa.DataType) -> bool:
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _listed(names: list[str], limit: int = 20) -> str:
    shown = ", ".join(names[:limit]) or "none"
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
