"""What was opened of a data set, and what was left aside: the record that users see before they trust a verdict.

A reader says what it leaves aside while it finds its rows:

    self.leave_aside("text file", 3, "not images", "notes/readme.txt")

`Source.opened` puts these entries beside files, rows and columns. `Opened.lines` is what commands print, and the
manifest, the summary and the report carry the same record.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from volgrowth.plain import plain

_KEY = b"volgrowth.left_aside"
SHOWN_KINDS = 8
"""Kinds of files that a sentence names, at most."""
_ENDING = re.compile(r"\.[a-z0-9]+")  # of shards, such as a.tfrecord-00000-of-00002, what they share
NAMELESS = "extensionless file"
_ROLES = {"image": "images", "id": "ids", "condition": "conditions"}


@dataclass(frozen=True)
class LeftAside:
    """Files, members or columns of a data set that do not become rows.

    Attributes:
        kind: what they are, in the singular, such as "tar file"; an "s" makes it the plural.
        count: how many.
        why: the reason, and what would take them in if anything does.
        example: the name of one of them, empty if none says more than its kind.
    """

    kind: str
    count: int
    why: str
    example: str = ""

    def __str__(self) -> str:
        named = f", such as {plain(self.example)}" if self.example else ""
        return f"{counted(self.count, self.kind)} ({self.why}{named})"


@dataclass(frozen=True)
class Opened:
    """What was opened of a data set.

    Attributes:
        kind: what its files are, in the singular, such as "parquet file".
        files: how many of them it has.
        rows: rows over all files.
        columns: the columns that are read, by their role: "image", "id" or "condition". In a webdataset these are
            extensions, with their dots.
        left_aside: whatever lies there and does not become rows.
    """

    kind: str
    files: int
    rows: int
    columns: Mapping[str, str] = field(default_factory=dict)
    left_aside: tuple[LeftAside, ...] = ()

    @property
    def said(self) -> str:
        """What was opened, in words."""
        columns = ", ".join(f"{_ROLES.get(role, role)} from {_named(name)}" for role, name in self.columns.items())
        said = f"{counted(self.rows, 'row')} of {counted(self.files, self.kind)}"
        return f"{said}; {columns}" if columns else said

    def lines(self, name: str = "opened") -> list[str]:
        """Return the two lines that commands print: what was opened, after `name`, and what was left aside."""
        return [f"{name}: {self.said}", f"left aside: {', '.join(map(str, self.left_aside)) or 'nothing'}"]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return the record from its JSON values, which `dataclasses.asdict` gives."""
        return cls(**{**content, "left_aside": tuple(LeftAside(**each) for each in content["left_aside"])})


def as_metadata(left_aside: Iterable[LeftAside]) -> dict[bytes, bytes]:
    """Return what was left aside when a table was written, as metadata of its Parquet file."""
    return {_KEY: json.dumps([asdict(each) for each in left_aside]).encode()}


def from_metadata(metadata: Mapping[bytes, bytes] | None) -> list[LeftAside]:
    """Return what was left aside when the table of a Parquet file was written; nothing for files of others."""
    try:
        return [LeftAside(**each) for each in json.loads((metadata or {})[_KEY])]
    except (KeyError, TypeError, ValueError):
        return []


def counted(count: int, noun: str) -> str:
    """Return a count and its noun, such as "1 tar file" or "1,200 tar files"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def kinds_counted(names: Iterable[str]) -> str:
    """Return the kinds of the files of these names, by their ends, with counts: "12 .csv files, 3 .npz files"."""
    kinds = Counter(file_kind(name) for name in names).most_common()
    shown = [counted(count, kind) for kind, count in kinds[:SHOWN_KINDS]]
    rest = sum(count for _, count in kinds[SHOWN_KINDS:])
    return ", ".join([*shown, *([counted(rest, "other file")] if rest else [])]) or "nothing"


def file_kind(name: str) -> str:
    """Return the kind of a file by the end of its name, in the singular: ".csv file", or "extensionless file"."""
    ending = _ENDING.match(os.path.splitext(name.partition("?")[0])[1].lower())
    return f"{ending[0]} file" if ending else NAMELESS


def _named(column: str) -> str:
    return f"members ending in {column}" if column.startswith(".") else f"column {column}"
