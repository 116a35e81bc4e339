"""Columns of a table become rows: which column holds the images, and what each of its values says.

An image column is a struct of `bytes` and `path`, as the Hugging Face tools write it, or plain binary.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.errors import DataError
from volgrowth.sources.arrays import huggingface_features, texts
from volgrowth.sources.base import Encoded, Request, Row, content_id, too_large
from volgrowth.sources.conditions import FLAGS, OPTIONS, check_condition_column, conditions_of
from volgrowth.sources.readers.tables.other_columns import Peek, conversion, outward
from volgrowth.sources.readers.tables.table_types import image_fields, is_bytes, is_plain_image
from volgrowth.storage.places import Place, read_ahead
from volgrowth.storage.urls import is_url

BATCH_ROWS = 64
"""Rows of a table that are taken at a time, at most."""
_EXPECTED = "an image column is a struct of bytes and path (datasets.Image) or binary"


@dataclass(frozen=True)
class Columns:
    """The names of the columns that an audit reads."""

    image: str
    id: str | None = None
    condition: str | None = None

    @property
    def names(self) -> list[str]:
        """The names, each once."""
        return list(dict.fromkeys(self.by_role.values()))

    @property
    def by_role(self) -> dict[str, str]:
        """The names that are given, by role."""
        return {role: name for role, name in asdict(self).items() if name is not None}


def choose_columns(schema: pa.Schema, request: Request, peek: Peek) -> Columns:
    """Return the columns of a table that a request means; the image column is found by its type unless named.

    Args:
        schema: names and types of the table's columns.
        request: the columns that the user named.
        peek: a look at the values, which tell URLs from paths.

    Raises:
        DataError: a named column does not exist or holds something else; no column or several hold images;
            the images are URLs.
    """
    where = request.data
    for option, name in (
        ("image_column (--image-column)", request.image_column),
        ("id_column (--id-column)", request.id_column),
        (f"{OPTIONS} ({FLAGS})", request.condition_column),
    ):
        if name is not None:
            _check_present(schema, name, option, where)
    if request.id_column is not None and pa.types.is_nested(schema.field(request.id_column).type):
        kind = schema.field(request.id_column).type
        raise DataError(f"column {request.id_column!r} of {where} holds {kind}; an id column holds strings or integers")
    if request.condition_column is not None:
        check_condition_column(schema.field(request.condition_column), where)
    image = request.image_column or _only_image_column(schema, where, peek)
    _check_image_column(schema, image, where, peek)
    return Columns(image, request.id_column, request.condition_column)


def rows_of(
    table: pa.Table, columns: Columns, place: Place, row: int, file: str, position: int, max_bytes: int
) -> Iterator[Row]:
    """Yield one `Row` for each row of a table, which is a stretch of a file's rows.

    Only the image of the row that is taken is copied out of the table.

    Args:
        table: has at least `columns.names`.
        columns: the image, id and condition columns.
        place: the folder that relative paths in the image column start from.
        row: number of the table's first row in the frozen order.
        file: name of the file that the rows come from.
        position: number of the table's first row in that file.
        max_bytes: the most bytes of an encoded image.
    """
    data, paths = _values(table.column(columns.image))
    nothing = [None] * table.num_rows
    ids = texts(table.column(columns.id)) if columns.id else nothing
    conditions = conditions_of(table.column(columns.condition)) if columns.condition else nothing

    def encoded(value: tuple[pa.Scalar, str | None]) -> Encoded:
        return _encoded(*value, place, max_bytes)

    values, threads = zip(data, paths, strict=True), place.threads if data.null_count else 1
    for index, (image, error, status) in enumerate(read_ahead(encoded, values, threads)):
        image_id = ids[index]
        if image_id is None:
            image_id = content_id(image or b"")
        yield Row(row + index, image_id, f"{file}#{position + index}", image, error, conditions[index], status)


def _check_present(schema: pa.Schema, name: str, option: str, where: str) -> None:
    """Raise a DataError unless the table has one column of this name."""
    count = schema.names.count(name)
    if count == 1:
        return
    if count > 1:
        raise DataError(
            f"{where} has {count} columns of the name {name!r}, and which one is meant cannot be told: give them names "
            "of their own (pyarrow.Table.rename_columns) and write the table again"
        )
    outer, _, inner = name.partition(".")
    nested = outer in schema.names and pa.types.is_struct(schema.field(outer).type)
    inside = f"; what {outer!r} holds becomes a column by {outward(outer, inner)}" if nested else ""
    raise DataError(
        f"{where} has no column {name!r}; it has: {shown_names(schema.names)}{inside}. Pass one as {option}"
    )


def _only_image_column(schema: pa.Schema, where: str, peek: Peek) -> str:
    found = image_columns(schema)
    if not found:
        features = huggingface_features(schema)
        for field in schema:
            other = conversion(field, features.get(field.name), peek, named=False)
            if other is not None:
                raise DataError(f"column {field.name!r} of {where} holds {other}")
        raise DataError(
            f"{where} is a data set without images; it has the columns {shown_names(schema.names)}, and {_EXPECTED}"
        )
    option = "image_column (--image-column)"
    if len(set(found)) > 1:
        raise DataError(f"{where} has several image columns ({shown_names(found)}): name one with {option}")
    _check_present(schema, found[0], option, where)
    return found[0]


def image_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that the Hugging Face metadata call images; without such, all that could hold images."""
    found = [field for field in schema if image_fields(field.type) or is_bytes(field.type)]
    features = huggingface_features(schema)
    kinds = {name: feature.get("_type") for name, feature in features.items() if isinstance(feature, dict)}
    marked = [field.name for field in found if kinds.get(field.name) == "Image"]
    # Sound and video are structs of bytes and path as well.
    unmarked = [field for field in found if kinds.get(field.name) in (None, "Value")]
    plain = [field.name for field in unmarked if is_plain_image(field.type)]
    return marked or plain or [field.name for field in unmarked]


def _check_image_column(schema: pa.Schema, name: str, where: str, peek: Peek) -> None:
    field = schema.field(name)
    if is_bytes(field.type):
        return
    fields = image_fields(field.type)
    if not fields:
        other = conversion(field, huggingface_features(schema).get(name), peek, named=True)
        said = other or (
            f"{'nulls alone' if pa.types.is_null(field.type) else field.type}, not images; {_EXPECTED}: name another "
            "with image_column (--image-column)"
        )
        raise DataError(f"column {name!r} of {where} holds {said}")
    # The bytes of eight photographs are looked at only if a path is a URL: it may be no more than a note.
    if (
        "path" in fields
        and any(is_url(path or "") for path in _values(peek(f"{name}.path"))[1])
        and any(not data.is_valid and is_url(path or "") for data, path in zip(*_values(peek(name)), strict=True))
    ):
        raise DataError(
            f"column {name!r} of {where} holds URLs: a column of URLs is not fetched; download the images "
            "first (for instance with img2dataset) and audit the files"
        )


def _encoded(data: pa.Scalar, path: str | None, place: Place, max_bytes: int) -> Encoded:
    if isinstance(data, pa.DictionaryScalar):
        data = data.value
    if data.is_valid:
        size = data.as_buffer().size
        if size > max_bytes:
            return too_large(size, max_bytes)
        return Encoded(data.as_py(), None if size else "the value holds no bytes")
    if not path:
        return Encoded(None, "the value is null: neither bytes nor a path")
    if is_url(path):
        return Encoded(None, "the value is a URL, which is not fetched; download first")
    size = place.size(path) or 0
    if size > max_bytes:
        return too_large(size, max_bytes)
    read, error = place.read(path)
    advice = "; the table holds its path and no bytes: datasets.Image() and save_to_disk put them in"
    return Encoded(read, error and error + advice)


def _values(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, list[str | None]]:
    """Return the bytes, as Arrow holds them, and the paths in an image column; null or None where there is none."""
    nothing: list[Any] = [None] * len(column)
    fields = image_fields(column.type)
    if not fields:
        return column, nothing
    data = pc.struct_field(column, "bytes") if "bytes" in fields else pa.chunked_array([pa.nulls(len(column))])
    paths = texts(pc.struct_field(column, "path")) if "path" in fields else nothing
    return data, paths


def shown_names(names: list[str], limit: int = 20) -> str:
    """Return names for a message, with the number of those beyond the limit."""
    shown = ", ".join(names[:limit]) or "none"
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
