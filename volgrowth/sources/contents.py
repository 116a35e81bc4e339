"""What lies in a folder: its files by the kind of data set that they could make, and all others, counted by kind.

Names alone decide here; nothing is opened. What is hidden is no data, and neither are the thumbnails and bins that
file servers keep (`NOT_DATA`). For tables and tars this holds for names that begin with `_` too, as Spark and Hive
have it (`_temporary`, `_SUCCESS`): such files are drafts and remains.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from volgrowth.errors import DataError
from volgrowth.sources.opened import NAMELESS, SHOWN_KINDS, counted, file_kind
from volgrowth.sources.ordering import Sorted
from volgrowth.sources.pixels.decoding import EXTENSIONS
from volgrowth.sources.readers.folder_metadata import is_table
from volgrowth.storage.places import Found, printable

UNITS = {
    "parquet": "parquet file",
    "webdataset": "tar file",
    "folder": "image file",
    "arrow": "arrow file",
    "packed": "packed tar file",
}
"""One file of each kind of data set, in words; packed tars are no data set, but what is to become one."""
NOT_DATA = frozenset({"@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX"})
"""Folders in which file servers and archives keep thumbnails, deleted files and notes on files."""
_ENDINGS = dict.fromkeys((".parquet", ".pq", ".parq"), "parquet") | {".tar": "webdataset", ".arrow": "arrow"}
_PACKED = frozenset({".gz", ".tgz", ".bz2", ".xz", ".zst"})
_HIDDEN = "names that begin with ., thumbnails and deleted files are no data"
_DRAFT = "tables and tars below names that begin with _ are no data"
_TWICE = "the same file is there under another name, and one file counts once"
_NOT_READ = "of no kind that is read"
_NAMELESS = "names without an ending tell no kind; end those of images in .png or the like"
_CACHED = "the snapshots link to those that they need"

_SNAPSHOT = re.compile(r"((?:.*/)?snapshots/[0-9a-f]{40})/")
_CACHE = re.compile(r"(?:^|/)(?:blobs|refs)/")
_MANAGED = {
    "Delta": re.compile(r"(?:^|/)_delta_log/"),
    "Hudi": re.compile(r"(?:^|/)\.hoodie/"),
    "Iceberg": re.compile(r"(?:^|/)metadata/[^/]*\.metadata\.json$"),
}
"""What only a table of files has that lists which of its files hold rows; the others hold rows that were deleted."""
UNFINISHED = ".curation-unfinished.json"
"""What lies in a prefix of a store while `volgrowth curate --apply` writes a data set there, or if it was cut off."""
MARKS = ("_delta_log/*.json", ".hoodie/*", "metadata/*.metadata.json", UNFINISHED)
"""Patterns of what makes a folder no data set as it lies."""


@dataclass
class _Tally:
    """A count of files, and the first of them by name."""

    count: int = 0
    example: str = ""

    def add(self, name: str, count: int = 1) -> None:
        self.count += count
        self.example = min(filter(None, (self.example, name)))


@dataclass
class Contents:
    """The files of a folder, or those that a pattern stands for.

    Attributes:
        files: those that could be a data set, sorted, by kind: a key of `UNITS`.
        tables: texts that may describe images beside them, such as metadata.csv, sorted.
        managed: the kind of table, such as "Delta", whose files these are, by a file that tells it.
        snapshots: the folders of revisions in a cache of the Hugging Face hub.
        unfinished: the file that tells that `volgrowth curate --apply` was cut off here; "" if none does.
    """

    files: dict[str, Sorted[Found]] = field(default_factory=lambda: {kind: Sorted() for kind in UNITS})
    tables: Sorted[Found] = field(default_factory=Sorted)
    managed: dict[str, str] = field(default_factory=dict)
    snapshots: set[str] = field(default_factory=set)
    unfinished: str = ""
    _aside: dict[tuple[str, str], _Tally] = field(default_factory=dict)
    _linked: set[tuple[int, int]] = field(default_factory=set)

    def add(self, file: Found, asked: bool = False) -> None:
        """Add a file; `asked` says that the user named hidden files and drafts, which are data then."""
        self.note_marks(file.name)
        kind = data_kind(file.name)
        *folders, _ = parts = file.name.split("/")
        hidden = any(part.startswith(".") for part in parts) and not asked
        draft = kind in ("parquet", "webdataset") and any(part.startswith("_") for part in parts)
        if hidden or not NOT_DATA.isdisjoint(folders):
            self.leave(f"hidden {UNITS.get(kind, 'file')}", _HIDDEN, file.name)
        elif draft and not asked:
            self.leave(UNITS[kind], _DRAFT, file.name)
        elif kind:
            self.files[kind].add(file)
            if file.identity and file.link:
                self._linked.add(file.identity)
        elif is_table(file.name):
            self.tables.add(file)
        else:
            self._leave_unread(file.name)

    def _leave_unread(self, name: str) -> None:
        kind = file_kind(name)
        nameless = _CACHED if _CACHE.search(name) else _NAMELESS
        self.leave(kind, nameless if kind == NAMELESS else _NOT_READ, name)

    def add_repeated(self, name: str) -> None:
        """Note a link to a folder whose files are there anyway."""
        self.leave("link", _TWICE, name)

    def leave(self, kind: str, why: str, example: str, count: int = 1) -> None:
        """Count files that are left aside, by their kind in the singular and the reason."""
        if count:
            self._aside.setdefault((kind, why), _Tally()).add(example, count)

    def leave_tables(self, why: str) -> None:
        """Count the tables as left aside, for they describe no row."""
        for file in self.tables:
            self.leave(file_kind(file.name), why, file.name)

    def settle(self) -> None:
        """Keep one name of each file that has several: its own rather than a link's, else the first by the alphabet."""
        if not self._linked:
            return
        for kind, files in self.files.items():
            kept: dict[tuple[int, int] | None, Found] = {}
            for file in files:
                if file.identity in self._linked:
                    before = kept.get(file.identity)
                    if before is None or (before.link == "soft" and file.link != "soft"):
                        kept[file.identity] = file
            once = Sorted[Found]()
            for file in files:
                if kept.get(file.identity, file).name == file.name:
                    once.add(file)
                else:
                    self.leave("link", _TWICE, file.name)
            self.files[kind] = once

    def aside(self) -> Iterator[tuple[str, int, str, str]]:
        """Yield kind, count, reason and example of what is left aside, the most first; rare kinds are one."""
        tallies = sorted(self._aside.items(), key=lambda each: (-each[1].count, each[0]))
        shown, rest = tallies[:SHOWN_KINDS], tallies[SHOWN_KINDS:]
        for (kind, why), tally in shown:
            # folders called blobs and refs are the hub's only where there are snapshots
            yield kind, tally.count, _NAMELESS if why == _CACHED and not self.snapshots else why, tally.example
        if rest:
            count = sum(tally.count for _, tally in rest)
            yield "other file", count, "of rarer kinds that are not read", rest[0][1].example

    def example_of(self, kind: str) -> str:
        """Return the first file by name of a kind that is left aside; "" if there is none."""
        return min((tally.example for (each, _), tally in self._aside.items() if each == kind), default="")

    def counted_but(self, chosen: str, why: str) -> list[tuple[str, int, str, str]]:
        """Return kind, count, the reason and an example of the files of each kind but the chosen one."""
        return [
            (UNITS[kind], len(files), why, next(iter(files)).name)
            for kind, files in self.files.items()
            if files and kind != chosen
        ]

    def counts(self, kinds: Iterable[str] = UNITS) -> str:
        """Return how many files of each kind there are, in words, with the name of one where there is but one."""
        said = []
        for kind in kinds:
            if files := self.files[kind]:
                one = f" ({printable(next(iter(files)).name)})" if len(files) == 1 else ""
                said.append(counted(len(files), UNITS[kind]) + one)
        return " and ".join(said)

    def summary(self) -> str:
        """Return what lies there, in words; "nothing" if nothing does."""
        aside = [counted(count, kind) for kind, count, _, _ in self.aside()]
        return ", ".join(filter(None, [self.counts(), *aside])) or "nothing"

    def refuse_parts(self, where: str, kind: str) -> None:
        """Raise a DataError if the files of a kind are no data set as they lie: those of a managed table, of several
        revisions in a cache of the hub, or a part of a curated data set.
        """
        if self.unfinished:
            raise DataError(
                f"{where} holds a part of a data set (it has {printable(self.unfinished)}): `volgrowth curate --apply` "
                "was cut off there; run it again, or remove the part by `volgrowth curate --undo`"
            )
        for table, name in self.managed.items() if kind == "parquet" else ():
            raise DataError(
                f"{where} is a table of {table} (it has {printable(name)}), whose files may hold deleted or replaced "
                f"rows: write its present rows as parquet by a reader of {table}, and audit those files"
            )
        if len(self.snapshots) > 1:
            shown = ", ".join(sorted(self.snapshots)[:4])
            raise DataError(
                f"{where} is a cache of the Hugging Face hub with {len(self.snapshots)} snapshots ({shown}), which "
                "hold the same rows more than once: name one of them; refs/main holds the name of the present one"
            )

    def note_marks(self, name: str) -> None:
        """Note a file by whose name a managed table, a snapshot of the hub or a part of a data set is told."""
        for kind, mark in _MANAGED.items():
            if mark.search(name):
                self.managed.setdefault(kind, name)
        if found := _SNAPSHOT.match(name):
            self.snapshots.add(found[1])
        if name.rpartition("/")[2] == UNFINISHED:
            self.unfinished = name


def data_kind(name: str) -> str:
    """Return the kind of data set that a file is of, a key of `UNITS`; "" if none.

    The end of the name decides, whatever its case. A name that was made from a URL ends at its `?`.
    """
    return _kind(name.lower()) or _kind(name.lower().partition("?")[0])


def _kind(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    if suffix in _PACKED:
        return "packed" if suffix == ".tgz" or stem.endswith(".tar") else ""
    return _ENDINGS.get(suffix, "folder" if suffix in EXTENSIONS else "")
