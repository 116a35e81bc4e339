"""Tables beside image files, of which columns are the conditions and ids of the images.

Two layouts tell which row of a table belongs to which file:

- `metadata.csv`, `metadata.jsonl` or `metadata.parquet`, as the image folders of the Hugging Face tools have them: the
  column `file_name` names a file relative to the table's folder
- `00000.parquet`, as img2dataset writes it beside the folder `00000`: the column `key` is a file's name there, without
  its ending

A table is read once, row by row, into a temporary database on disk, in which the row of any file is found: metadata of
any number of images are read in bounded memory. Each table that is used is in the listing with the hash of its content,
so that a changed caption is a changed data set.
"""

import hashlib
import os
import posixpath
import re
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow.compute as pc

from volgrowth.errors import DataError
from volgrowth.sources.base import Request
from volgrowth.sources.listing import Listing, SourceFile
from volgrowth.sources.readers.tables.metadata_tables import SUFFIXES, table_columns, table_rows
from volgrowth.sources.readers.tables.table_columns import shown_names
from volgrowth.storage.places import Found, Place, printable

FILE_NAME, KEY = "file_name", "key"
_HASH = " sha256:"
"""Between the name of a table in the listing and the hash of its content."""
_NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})")
_NO_NAMES = f"tables without a column {FILE_NAME} or {KEY}, which would tell the image of each row"

Note = tuple[str, int, str, str]
"""Kind, count, reason and example of what is left aside, as `Source.leave_aside` takes them."""


class Described(NamedTuple):
    """What the tables tell of an image: its id and its condition, None where they tell nothing."""

    id: str | None = None
    condition: str | int | None = None


class Keys(NamedTuple):
    """How a table names image files: the column of names, and the folder that they start from."""

    named: str
    folder: str

    @classmethod
    def of(cls, place: Place, table: Found) -> "Keys":
        """Return how a table of a place names image files."""
        named = naming_column(table_columns(place, table)) or FILE_NAME
        return cls(named, posixpath.dirname(table.name) if named == FILE_NAME else posixpath.splitext(table.name)[0])

    def key(self, name: str) -> bytes:
        """Return the key of the image file that the table names so, as `by_name` or `by_key` makes it."""
        path = posixpath.normpath(posixpath.join(self.folder, name.replace("\\", "/")))
        return (by_name if self.named == FILE_NAME else by_key)(path)


class FolderMetadata:
    """The rows of the tables beside image files, found by the names of the files.

    Args:
        place: the folder of the data set.
        request: the columns that are wanted.
        tables: the tables that are used.
        digests: hash of the content of each table by its name, as it was when the data set was listed; without, the
            tables are listed now.

    Attributes:
        entries: the tables in the form that the listing has them.

    Raises:
        DataError: a table cannot be read, has changed, or has two rows for one file.
    """

    def __init__(
        self, place: Place, request: Request, tables: Iterable[Found], digests: dict[str, str] | None = None
    ) -> None:
        self._place, self._request, self._tables = place, request, tuple(tables)
        self._digests = digests or {table.name: _digest(place, table) for table in self._tables}
        self._below = f"{request.split.strip('/')}/" if request.split else ""
        self._database: sqlite3.Connection | None = None
        if digests is not None:
            self._check_digests()
        self.entries = [
            SourceFile(table.name + _HASH + self._digests[table.name], table.size, 0, tag=table.tag)
            for table in self._tables
        ]

    @classmethod
    def found(cls, place: Place, request: Request, tables: Iterable[Found]) -> tuple["FolderMetadata", list[Note]]:
        """Return the metadata in those tables that have the columns, and notes on the other tables.

        Raises:
            DataError: no table has them.
        """
        wanted = [name for name in (request.id_column, request.condition_column) if name is not None]
        used, aside, there = list[Found](), dict[str, list[str]](), dict[str, None]()
        for table in tables:
            columns = table_columns(place, table)
            named = naming_column(columns)
            lacking = [name for name in wanted if name not in columns]
            if named is not None:
                there |= dict.fromkeys(columns)
            if named is None or lacking:
                why = _NO_NAMES if named is None else f"tables without a column {lacking[0]}"
                aside.setdefault(why, []).append(table.name)
            else:
                used.append(table)
        if not used:
            others = f"; the tables that tell the image of each row have: {shown_names(list(there))}" if there else ""
            raise DataError(
                f"{request.data} holds images, and no table beside them has the column {' and '.join(wanted)} and a "
                f"column {FILE_NAME} (in metadata.csv, metadata.jsonl or metadata.parquet) or {KEY} (in the parquet "
                f"files of img2dataset){others}"
            )
        notes = [("table", len(names), why, min(names)) for why, names in aside.items()]
        return cls(place, request, sorted(used)), notes

    @classmethod
    def listed(cls, place: Place, request: Request, listing: Listing) -> "FolderMetadata | None":
        """Return the metadata in the tables that a listing has; None if it has none."""
        tables, digests = [], {}
        for chunk in listing.chunks():
            for row in chunk.filter(pc.equal(chunk["rows"], 0)).to_pylist():
                name, _, digest = os.fsdecode(row["name"]).rpartition(_HASH)
                tables.append(Found(name, row["size"]))
                digests[name] = digest
        return cls(place, request, tables, digests) if tables else None

    def describe(self, name: str) -> Described:
        """Return what the tables tell of an image file."""
        stem, _ = posixpath.splitext(name)
        found = self._rows.execute(
            "SELECT id, condition FROM described WHERE name IN (?, ?)", (by_name(name), by_key(stem))
        ).fetchone()
        return Described(*found) if found else Described()

    def notes(self, names: Iterable[str]) -> Iterator[Note]:
        """Yield how many of the images no table names, and how many rows name none of them.

        Args:
            names: of all image files of the data set.
        """
        self._rows.execute("CREATE TABLE images (name BLOB, key BLOB)")
        keys = ((by_name(name), by_key(posixpath.splitext(name)[0])) for name in names)
        self._rows.executemany("INSERT INTO images VALUES (?, ?)", keys)
        self._rows.execute("CREATE TABLE seen AS SELECT name FROM images UNION SELECT key FROM images")
        self._rows.execute("CREATE UNIQUE INDEX seen_names ON seen (name)")
        missing = self._rows.execute(
            "SELECT count(*), min(name) FROM images WHERE NOT EXISTS (SELECT 1 FROM described WHERE described.name IN "
            "(images.name, images.key))"
        ).fetchone()
        without = self._rows.execute(
            "SELECT count(*), min(name) FROM described WHERE NOT EXISTS (SELECT 1 FROM seen WHERE seen.name = "
            "described.name)"
        ).fetchone()
        self._rows.execute("DROP TABLE images")
        self._rows.execute("DROP TABLE seen")
        for kind, why, (count, example) in (
            ("missing metadata row", "these images are rows without a condition or an id of their own", missing),
            ("metadata row", "they name no image of the data set", without),
        ):
            yield kind, count, why, os.fsdecode(example[1:]) if example else ""

    @property
    def _rows(self) -> sqlite3.Connection:
        """The database of what the tables tell, by file."""
        if self._database is None:
            self._database = self._read()
        return self._database

    def _read(self) -> sqlite3.Connection:
        # a database without a name is a file that goes when it is closed
        database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        database.execute("CREATE TABLE described (name BLOB, id, condition, source INTEGER, text INTEGER)")
        database.execute("BEGIN")
        for source, table in enumerate(self._tables):
            text = table.name.lower().endswith(".csv")
            rows = ((*row, source, text) for row in self._told(table))
            database.executemany("INSERT INTO described VALUES (?, ?, ?, ?, ?)", rows)
        try:
            database.execute("CREATE UNIQUE INDEX names ON described (name)")
        except sqlite3.IntegrityError:
            raise self._twice(database) from None
        # CSV does not tell numbers from text: a column of numbers alone holds classes
        told = database.execute("SELECT condition FROM described WHERE text AND condition IS NOT NULL")
        if all(_NUMBER.fullmatch(condition) for (condition,) in told):
            database.execute("UPDATE described SET condition = CAST(condition AS INTEGER) WHERE text")
        database.execute("COMMIT")
        return database

    def _twice(self, database: sqlite3.Connection) -> DataError:
        """Return the error that two rows describe one file."""
        name, source = database.execute(
            "SELECT name, max(source) FROM described GROUP BY name HAVING count(*) > 1 ORDER BY name LIMIT 1"
        ).fetchone()
        return DataError(
            f"{self._place.url(self._tables[source].name)} has a row for {printable(os.fsdecode(name[1:]))}, which has "
            "another row in it or in another table: leave one row for each image"
        )

    def _told(self, table: Found) -> Iterator[tuple[bytes, str | None, str | int | None]]:
        """Yield what each row of a table tells, after the key that its file is found by."""
        keys, below = Keys.of(self._place, table), os.fsencode(self._below)
        rows = table_rows(self._place, table, keys.named, self._request.id_column, self._request.condition_column)
        for name, identity, condition in rows:
            if name is not None and (key := keys.key(name))[1:].startswith(below):
                yield key, identity, _plain(condition)

    def _check_digests(self) -> None:
        for table in self._tables:
            if (digest := _digest(self._place, table)) != self._digests[table.name]:
                self._place.changed(table.name, f"content of sha256 {digest[:12]}", self._digests[table.name][:12])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_database": None}


def is_table(name: str) -> bool:
    """Return whether a file is of a kind of table that can describe images, by its name."""
    return posixpath.splitext(name)[1].lower() in SUFFIXES


def naming_column(columns: list[str]) -> str | None:
    """Return the column of a table that names image files, of those with these names; None if there is none."""
    return next((name for name in (FILE_NAME, KEY) if name in columns), None)


def _digest(place: Place, table: Found) -> str:
    with place.open(table.name, table.size) as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def by_name(path: str) -> bytes:
    """Return the key of an image file, by its path."""
    return b"n" + os.fsencode(path)


def by_key(stem: str) -> bytes:
    """Return the key of an image file, by its path without the ending."""
    return b"k" + os.fsencode(stem)


def _plain(value: str | int | None) -> str | int | None:
    """Return a value that the database takes: integers have 64 bits there."""
    return str(value) if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63 else value
