"""Which files are the data set, where a folder holds files of several kinds.

The rule is to know or to ask. Two things are known: tables without an image column beside images or tars are notes on
these, and image files to which a table leads by paths belong to the table. All else is asked.
"""

import os
from collections.abc import Iterable
from functools import partial
from typing import NoReturn

import pyarrow as pa

from volgrowth.errors import DataError
from volgrowth.sources.base import Request
from volgrowth.sources.contents import UNITS, Contents
from volgrowth.sources.opened import NAMELESS
from volgrowth.sources.pixels.decoding import EXTENSIONS
from volgrowth.sources.readers.splits import SPLIT_WORDS
from volgrowth.sources.readers.tables.parquet import PAGE_BYTES, open_parquet
from volgrowth.sources.readers.tables.table_columns import image_columns
from volgrowth.sources.readers.webdataset import refuse_packed
from volgrowth.storage.places import Found, Place, printable, read_ahead

Note = tuple[str, int, str, str]
"""Kind, count, reason and example of what is left aside, as `Source.leave_aside` takes them."""

_PEEKED = 8
"""Rows of a table that tell whether it holds images or leads to them."""
_NOTES = "tables without an image column are notes on what lies beside them"
_DESCRIBING = "tables beside images are read where --id-column, --caption-column or --class-column names a column"
_OF_NOTHING = "tables are read beside image files, not beside others"
_OF_TARS = "notes of img2dataset on the tars of the same names"
_BY_PATHS = "those to which the paths in the table lead are read as its rows, others are not"
_PACKED = "packed tars are not read; unpack those that belong to the data set"
_MAGIC = {
    b"\xff\xd8\xff": "JPEG images",
    b"\x89PNG": "PNG images",
    b"GIF8": "GIF images",
    b"RIFF": "WebP images",
    b"PAR1": "parquet files",
}


def choose_kind(place: Place, request: Request, contents: Contents) -> tuple[str, list[Note]]:
    """Return the kind of the files that are the data set, and a note on each other kind.

    Args:
        place: the folder.
        request: what the user asked for; `kind` decides if it is given.
        contents: the files of the folder, or of a pattern.

    Raises:
        DataError: there are none, or nothing tells which are meant.
    """
    there = [kind for kind, files in contents.files.items() if files and kind != "packed"]
    reasons = {"packed": _PACKED}
    if request.kind is not None:
        reasons |= dict.fromkeys(there, f"{request.kind} was asked for")
        there = [request.kind] if request.kind in there else []
    elif "parquet" in there and len(there) > 1:
        there, known = _by_tables(place, contents, there)
        reasons |= known
    if request.image_column is not None and len(there) > 1:
        there = [kind for kind in there if kind != "folder"]  # image files have no columns
        reasons["folder"] = "image files have no columns, and image_column names one"
    if not there:
        contents.leave_tables("")
        _refuse_nothing(place, request, contents)
    if len(there) > 1:
        raise DataError(
            f"{request.data} holds files of more than one kind, {contents.counts(there)}, and nothing tells which are "
            f"the data set: pass --set data_kind={' or data_kind='.join(there)} (for held-out images holdout_kind), "
            "or a pattern such as folder/**/*.png, or move the others away"
        )
    notes = [
        (UNITS[kind], len(files), reasons[kind], next(iter(files)).name)
        for kind, files in contents.files.items()
        if files and kind != there[0]
    ]
    return there[0], notes


def describing_tables(request: Request, contents: Contents, kind: str) -> list[Found]:
    """Return the tables that may describe images; what is none, or none that is asked for, is left aside."""
    if kind == "folder" and (request.id_column is not None or request.condition_column is not None):
        return [*contents.files["parquet"], *contents.tables]
    contents.leave_tables(_DESCRIBING if kind == "folder" else _OF_NOTHING)
    return []


def refuse_several_splits(request: Request, files: Iterable[Found]) -> None:
    """Raise a DataError if image files lie in folders named as splits, such as train and test, and none was asked for.

    Args:
        request: what the user asked for.
        files: the image files below the folder.
    """
    folders = {file.name.partition("/")[0] for file in files if "/" in file.name}
    splits = sorted(folder for folder in folders if folder.lower() in SPLIT_WORDS)
    if request.split is None and len({SPLIT_WORDS[folder.lower()] for folder in splits}) > 1:
        raise DataError(
            f"{request.data} has several splits ({', '.join(splits)}): name the one to audit with split (--split), or "
            f"take the images of all by the pattern {request.data.rstrip('/')}/**/*"
        )


def _by_tables(place: Place, contents: Contents, there: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the kinds that may be the data set where tables lie beside others, and why the rest are not."""
    tables, others = contents.files["parquet"], [kind for kind in there if kind != "parquet"]
    if _beside_tars(tables, contents.files["webdataset"]):
        return others, {"parquet": _OF_TARS}
    roles = set(read_ahead(partial(_role, place), tables, place.threads))
    if roles == {"notes"}:
        return others, {"parquet": _NOTES}
    if "images" not in roles and others == ["folder"]:
        return ["parquet"], {"folder": _BY_PATHS}
    return there, {}


def _beside_tars(tables: Iterable[Found], tars: Iterable[Found]) -> bool:
    """Return whether every table lies beside a tar of its name."""
    names = {os.path.splitext(file.name)[0] for file in tars}
    return bool(names) and all(os.path.splitext(file.name)[0] in names for file in tables)


def _role(place: Place, file: Found) -> str:
    """Return what a table is beside other files: "images" if it holds some, "paths" if it leads to some, or "notes"."""
    with open_parquet(place, file, buffer_size=PAGE_BYTES) as parquet:
        schema = parquet.schema_arrow
        found = image_columns(schema)
        if not found or not parquet.metadata.num_rows:
            return "notes"
        if any(schema.names.count(name) > 1 or not pa.types.is_struct(schema.field(name).type) for name in found):
            return "images"
        try:
            rows = next(parquet.iter_batches(batch_size=_PEEKED, columns=found)).to_pylist()
        except UnicodeDecodeError:
            return "images"  # nothing tells, so it is asked
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{place.url(file.name)} cannot be read as parquet ({error}): write it again, or move it away"
            ) from None
    values = [row[name] or {} for row in rows for name in found]
    return "paths" if any(value.get("path") and not value.get("bytes") for value in values) else "images"


def _refuse_nothing(place: Place, request: Request, contents: Contents) -> NoReturn:
    """Raise the DataError that a folder holds nothing that could be the data set."""
    packed = contents.files["packed"]
    if packed and request.kind is None:
        refuse_packed(place.url(next(iter(packed)).name))
    named = UNITS.get(request.kind or "", "image")
    lies = contents.summary()
    looked = _looked_into(place, contents)
    raise DataError(
        f"{request.data} holds no {named}s: it holds {lies}{looked}; expected parquet files, webdataset tars, or image "
        f"files, which end in {', '.join(sorted(EXTENSIONS))}, in it or in folders below"
    )


def _looked_into(place: Place, contents: Contents) -> str:
    """Return what the first file without an ending is by its first bytes, in words."""
    name = contents.example_of(NAMELESS)
    size = place.size(name)
    if not size:
        return ""
    with place.open(name, size) as stream:
        head = stream.read(16)
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    return f" (which are {kind} by the first bytes of {printable(name)}: give their names an ending)" if kind else ""
