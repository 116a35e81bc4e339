"""Curated data sets in object stores: written file by file, whole or unfinished by name, and removed again.

A store has no rename that covers many objects. So a prefix is a curated data set when its receipt is there, which is
written last. Until then the object `UNFINISHED` lies in it, which was written first: it names the list that is being
applied and all objects that will be written, and notes those that are there, with size, sha256 and the store's tag.
The same command goes on from these notes after a kill; another list is refused; `--undo` removes what was written. The
lock of `volgrowth.audit.output.lock` keeps a second command from the prefix, and fences each object.

Each file is written to the local disk first, where its rows are counted, and then uploaded in parts that appear
together: the disk needs room for the largest file, the memory for a few parts.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self, TypeVar

from volgrowth.audit.output.lock import LOCK, driving
from volgrowth.curation.kept import check_inside
from volgrowth.curation.receipts import (
    NO_RECEIPT,
    RECEIPT,
    Receipt,
    not_as_written,
    refuse_strange,
    seal_file,
    unreadable_receipt,
)
from volgrowth.curation.stages import Count, Stage, no_rows
from volgrowth.errors import DataError, OutputError, VolgrowthError
from volgrowth.sources.contents import UNFINISHED
from volgrowth.storage.failures import store_reason
from volgrowth.storage.local_files import Found
from volgrowth.storage.made_here import made_here, remember_made
from volgrowth.storage.places import locate, printable, read_ahead
from volgrowth.storage.store import Store

NOTED_SECONDS = 30.0
"""Seconds between two versions of that object: what was written since is written again after a kill."""
REMOVED_AT_ONCE = 16

Kind = TypeVar("Kind", Receipt, "Unfinished")


@dataclass(frozen=True)
class Unfinished:
    """What is noted in a prefix while a data set is written to it.

    Attributes:
        receipt: what the receipt will say, without files.
        list: sha256 of the rows that stay and their weights.
        names: all objects that will be written.
        files: size, sha256, tag and rows of those that are there.
    """

    receipt: Receipt
    list: str
    names: Sequence[str] = ()
    files: dict[str, tuple[int, str, str, int]] = field(default_factory=dict)

    @classmethod
    def parsed(cls, data: bytes) -> Self:
        """Return what the bytes of the object say; raises what `Receipt.parsed` raises."""
        content = json.loads(data)
        receipt = Receipt.parsed(json.dumps(content["receipt"]).encode())
        files = {name: (int(a), str(b), str(c), int(d)) for name, (a, b, c, d) in content["files"].items()}
        return cls(receipt, str(content["list"]), [str(name) for name in content["names"]], files)

    @property
    def content(self) -> dict[str, Any]:
        """What the object holds."""
        return {**asdict(self), "receipt": self.receipt.content}

    def goes_on_with(self, other: "Unfinished") -> bool:
        """Return whether another one writes the same data set."""
        return (self.receipt, self.list) == (other.receipt, other.list)


def check_prefix(store: Store) -> None:
    """Check that nothing lies in a prefix but, perhaps, a data set whose writing was cut off.

    Raises:
        OutputError: something does.
        DataError: the store cannot be asked.
    """
    there = _listed(store)
    if RECEIPT in there:
        raise OutputError(
            f"--apply {store.url}: a curated data set is there: choose a new prefix, or `volgrowth curate --undo` it "
            "first"
        )
    if there and UNFINISHED not in there:
        raise OutputError(
            f"--apply {store.url}: the prefix holds {len(there):,} objects, such as {printable(min(there))!r}: "
            "expected an empty one; choose another, and nothing is changed there"
        )


def _listed(store: Store) -> dict[str, Found]:
    """Return all objects below a prefix but the lock, by their names in it."""
    found = locate(store.url)
    if found is None:
        return {}
    place, file = found
    if file is not None:
        raise OutputError(f"{store.url} is an object, and a prefix was expected: choose another")
    return {object_.name: object_ for object_ in place.walk() if object_.name != LOCK}


@contextmanager
def open_stored_stage(store: Store, begun: Unfinished) -> Iterator["StoreStage"]:
    """Open a prefix of a store to write a data set to it, or to go on where that was cut off.

    What was written stays where the store or its lock failed, or where the process is told to end: the same command
    goes on. After any other error it is removed.

    Args:
        store: the prefix.
        begun: what is written, without names and files.
    """
    with driving(store) as lock:
        stage = StoreStage(lock.fenced(), begun)
        try:
            yield stage
        except OSError as error:
            stage.remove()
            raise OutputError(
                f"{store.url} cannot be written, since a file of it does not fit into {tempfile.gettempdir()} "
                f"({store_reason(error)}): set TMPDIR to a folder with room for the largest file; nothing was written"
            ) from None
        except VolgrowthError:
            stage.note() if stage.failed else stage.remove()
            raise
        except BaseException:
            stage.note()
            raise


class StoreStage(Stage):
    """A prefix of an object store.

    Args:
        store: the prefix, fenced by its lock.
        begun: what is written.

    Attributes:
        failed: whether the store, or the lock on it, failed.
    """

    def __init__(self, store: Store, begun: Unfinished) -> None:
        self.store, self.begun, self.failed, self.opened, self._noted = store, begun, False, False, 0.0

    def expect(self, names: Sequence[str]) -> None:
        """Check that nothing else lies in the prefix, and note what will be written there.

        Raises:
            OutputError: something else does, or an unfinished data set of another list.
            DataError: a store cannot hold a file of this name.
        """
        for name in names:
            check_inside(name)
            if printable(name) != name or str(PurePosixPath(name)) != name:
                raise DataError(
                    f"file {printable(name)!r} of the data set has a name that an object store would not keep: rename "
                    "it and audit again, or apply the list to a local folder"
                )
        there = _listed(self.store)
        before = self._before(there)
        for name in sorted(there.keys() - {*names, UNFINISHED}):
            raise OutputError(
                f"{self.store.url} holds {printable(name)!r}, which `volgrowth curate` did not write there: take it "
                "away, or choose another prefix"
            )
        files = {
            name: entry
            for name, entry in before.items()
            if name in there and _is_as_written(self.store, there[name], entry[:3])
        }
        self.begun = replace(self.begun, names=list(names), files=files)
        self.rows = sum(entry[3] for entry in files.values())
        self._write_note()
        self.opened = True

    def _before(self, there: dict[str, Found]) -> dict[str, tuple[int, str, str, int]]:
        """Return what an earlier attempt of this account noted as written."""
        if UNFINISHED not in there:
            return {}
        try:
            before = Unfinished.parsed(self.store.read(UNFINISHED))
        except NO_RECEIPT:
            before = None
        if before is None or not before.goes_on_with(self.begun):
            raise OutputError(
                f"--apply {self.store.url}: an unfinished data set of another list is there: choose a new prefix, or "
                "`volgrowth curate --undo` it first"
            )
        return before.files if made_here(before.content) else {}

    def has(self, name: str) -> bool:
        """Return whether an earlier attempt wrote the object, and it is as that wrote it."""
        return name in self.begun.files

    @contextmanager
    def new_file(self, name: str, count: Count = no_rows) -> Iterator[Path]:
        """Give the path of a temporary file, which is uploaded at the end of the block."""
        with tempfile.TemporaryDirectory(prefix="volgrowth-") as folder:
            path = Path(folder) / "file"
            yield path
            rows, (size, sha256) = count(path), seal_file(path)
            tag = self._upload(name, path, size)
        self.rows += rows
        self.begun.files[name] = size, sha256, tag, rows
        if time.monotonic() - self._noted >= NOTED_SECONDS:
            self._write_note()

    def _upload(self, name: str, path: Path, size: int) -> str:
        """Upload a file, and return the tag by which the store knows it."""
        self.failed = True  # until it is there
        self.store.upload(name, path)
        stored = self.store.stored(name)
        if stored is None or stored[0] != size:
            raise OutputError(
                f"{self.store.path(name)} holds {'nothing' if stored is None else f'{stored[0]} bytes'} and {size} "
                "were uploaded: something else writes there; choose another prefix"
            )
        self.failed = False
        return stored[1]

    def finish(self, receipt: Receipt) -> Receipt:
        """Write the receipt, which makes a data set of what was written."""
        for name, (size, sha256, tag, _) in self.begun.files.items():
            receipt.files[name], receipt.tags[name] = (size, sha256), tag
        self.failed = True
        self.store.write(RECEIPT, receipt.to_json())
        self.store.delete(UNFINISHED)
        return receipt

    def _write_note(self) -> None:
        self.failed, self._noted = True, time.monotonic()
        remember_made(self.begun.content)
        self.store.write(UNFINISHED, json.dumps(self.begun.content).encode())
        self.failed = False

    def note(self) -> None:
        """Note what was written, for the same command to go on; nothing if the store does not take it."""
        if self.opened:
            with suppress(OutputError):
                self._write_note()

    def remove(self) -> None:
        """Remove what was written, as far as the store lets it."""
        if self.opened:
            with suppress(VolgrowthError):
                _remove(self.store, [name for name in self.begun.names if name in _listed(self.store)])


def undo_stored(store: Store, trust_output: bool) -> Receipt:
    """Remove a data set, finished or not, from the prefix that it was written to, if nothing in it has changed.

    Args:
        store: the prefix.
        trust_output: remove it although another account, or another machine, wrote it.

    Returns:
        The receipt of what was removed.

    Raises:
        OutputError: the prefix has no receipt, this account did not write it, or something in it has changed; nothing
            is removed then.
    """
    _removable(store, trust_output)  # before the lock is written: the prefix may be anybody's
    with driving(store) as lock:
        there, receipt = _removable(store, trust_output)
        fenced = lock.fenced()
        if UNFINISHED not in there:  # so that it can be gone on with
            noted = {name: (*receipt.files[name], receipt.tags.get(name, ""), 0) for name in receipt.files}
            begun = Unfinished(replace(receipt, files={}, tags={}), "", list(receipt.files), noted)
            remember_made(begun.content)
            fenced.write(UNFINISHED, json.dumps(begun.content).encode())
        fenced.delete(RECEIPT)
        _remove(fenced, [name for name in there if name not in (RECEIPT, UNFINISHED)])
    return receipt


def _remove(store: Store, names: Sequence[str]) -> None:
    """Remove objects, and at last the note that they are there."""
    for _ in read_ahead(store.delete, names, REMOVED_AT_ONCE):
        pass
    store.delete(UNFINISHED)


def _removable(store: Store, trust_output: bool) -> tuple[dict[str, Found], Receipt]:
    """Return all objects in a prefix and their receipt, or raise an OutputError if they are not to be removed."""
    there = _listed(store)
    if RECEIPT in there:
        receipt = _parsed(store, RECEIPT, Receipt)
        refuse_strange(store.url, RECEIPT, trust_output or made_here(receipt.content))
        files = {name: (*file, receipt.tags.get(name, "")) for name, file in receipt.files.items()}
        must, names = set(files), set(files)
    elif UNFINISHED in there:
        begun = _parsed(store, UNFINISHED, Unfinished)
        refuse_strange(store.url, UNFINISHED, trust_output or made_here(begun.content))
        files = {name: entry[:3] for name, entry in begun.files.items()}
        must, names = set(), set(begun.names)
        sizes = {name: (found.size, "") for name, found in there.items() if name in names}
        receipt = replace(begun.receipt, rows=sum(entry[3] for entry in begun.files.values()), files=sizes)
    else:
        raise OutputError(
            f"{store.url} holds no {RECEIPT}: expected a prefix that `volgrowth curate --apply` wrote; nothing was "
            "removed"
        )
    for name in sorted({*must, *there} - {RECEIPT, UNFINISHED}):
        if name not in there:
            raise not_as_written(store.url, printable(name), "missing")
        if name not in names:
            raise not_as_written(store.url, printable(name), "not of its writing")
        if name in files and not _is_as_written(store, there[name], files[name]):
            raise not_as_written(store.url, printable(name), "changed")
    return there, receipt


def _is_as_written(store: Store, found: Found, written: tuple[int, str, str]) -> bool:
    """Return whether an object has the size and the tag, or else the sha256, with which it was written."""
    size, sha256, tag = written
    if found.size != size:
        return False
    if tag:  # some stores list other tags than they give for one object
        return tag == found.tag or (size, tag) == store.stored(found.name)
    with store.local_file(found.name) as path:
        return seal_file(Path(path)) == (size, sha256)


def _parsed(store: Store, name: str, kind: type[Kind]) -> Kind:
    try:
        return kind.parsed(store.read(name))
    except NO_RECEIPT as error:
        raise unreadable_receipt(store.path(name), store.url, error) from None
