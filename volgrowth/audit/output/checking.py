"""A finished output is verified: every file is read, compared with its digest and with the other files."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.audit.output.fragments import READERS, identity
from volgrowth.audit.output.listings import LISTING_FOLDER, chunk_name, listing_is_whole
from volgrowth.audit.output.manifest import (
    HOLDOUT_FOLDER,
    IMAGES_FOLDER,
    MANIFEST,
    SCORES_FOLDER,
    SUCCESS,
    Manifest,
    Shard,
)
from volgrowth.audit.output.mending import SHAPES, misshapen, tell_user
from volgrowth.audit.output.parts import NEEDED_FINDINGS
from volgrowth.audit.output.result import (
    FIGURES_FOLDER,
    FINDINGS_FILE,
    HOLDOUT_FINDINGS_FILE,
    REDACTED_FILE,
    REPORT_FILE,
    SUMMARY_FILE,
    SUMMARY_SHAPE,
)
from volgrowth.audit.output.runs import RUNS_FOLDER
from volgrowth.errors import DamagedError, OutputError
from volgrowth.records import FINDINGS, Status
from volgrowth.storage.failures import store_reason
from volgrowth.storage.places import read_ahead
from volgrowth.storage.sealing import has_seal
from volgrowth.storage.store import Store

AUDIT_AGAIN = "run the same `volgrowth audit` again, which makes it anew"
CURATION = "curation.parquet"
_KEPT = ["row", "image_id", "status", "growth"]
_SHARED = ["row", "image_id", "growth"]
_FOLDERS = frozenset(
    (SCORES_FOLDER, HOLDOUT_FOLDER, IMAGES_FOLDER, LISTING_FOLDER, RUNS_FOLDER, FIGURES_FOLDER, "verification")
)
_MADE_AGAIN = frozenset((SCORES_FOLDER, HOLDOUT_FOLDER, RUNS_FOLDER, "verification"))
_BESIDE = SHAPES.keys()
_OF_SAMPLES = frozenset(("verification/samples.parquet", "verification/returns.parquet"))
_EARLIER = "it is of the audit as it was before it was extended or finished anew"

T = TypeVar("T")


@dataclass(frozen=True)
class BadFile:
    """A file of an output that is missing, damaged or does not fit the others.

    Attributes:
        name: its name under OUT.
        why: what is wrong with it.
        fix: the command that makes it again.
        by_audit: whether the audit has to be finished once more; if not, it stays until another command replaces it.
    """

    name: str
    why: str
    fix: str = AUDIT_AGAIN
    by_audit: bool = True


@dataclass
class CheckedOutput:
    """What was found about the files of an output.

    Attributes:
        url: the output.
        verified: names of the files that are right.
        unsealed: those of these that carry no digest, since an older version wrote them.
        bad: the files that are not right.
        unknown: names of files that volgrowth did not write.
        rows: number of rows of each data set whose scores were compared, by the folder of the scores.
    """

    url: str
    verified: list[str] = field(default_factory=list)
    unsealed: list[str] = field(default_factory=list)
    bad: list[BadFile] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)


def verify_files(store: Store) -> CheckedOutput:
    """Read every file of an output, and compare it with its digest and with the files that it was made from.

    Raises:
        OutputError: there is no audit, its manifest is damaged, or the store cannot be read.
    """
    return _Check(store).run()


def clear_bad_files(store: Store) -> bool:
    """Name the bad files of a finished output, and delete those that the audit or a later command makes again.

    Args:
        store: the output, locked.

    Returns:
        Whether the audit has to be finished once more. Other commands replace lists, and what is of an earlier state.
    """
    found = verify_files(store)
    for bad in found.bad:
        tell_user(f"{store.path(bad.name)}: {bad.why}; {bad.fix.removesuffix(', which makes it anew')}")
        folder = bad.name.rpartition("/")[0]
        again = folder in _MADE_AGAIN or bad.name.startswith("cascade-") or bad.name in _BESIDE
        if again and bad.by_audit and store.exists(bad.name):
            store.delete(bad.name)
    return any(bad.by_audit for bad in found.bad)


def wrong_list(store: Store, manifest: Manifest) -> str | None:
    """Return what is wrong with the curation list of an output; None if it lists each row of the audit as it is now.

    Raises:
        DamagedError: it cannot be read, or has changed since it was written.
    """
    rows, in_order, names = 0, True, set[str | None]()
    for batch in store.read_batches(CURATION):
        if lacking := [column for column in ("row", "audit") if column not in batch.schema.names]:
            return f"it lacks the column {lacking[0]}"
        in_order = in_order and np.array_equal(batch["row"].to_numpy(False), np.arange(rows, rows + len(batch)))
        rows += len(batch)
        names |= set(batch["audit"].unique().to_pylist())
    if other := names - {manifest.list_digest}:
        return f"it is of another audit, or of this one before it was extended ({min(map(str, other))} in column audit)"
    return None if in_order and rows == manifest.data.rows else "it does not list each row of the audit, in their order"


class _Check:
    """One verification; each method verifies one kind of file."""

    def __init__(self, store: Store):
        if not store.exists(MANIFEST):
            raise OutputError(f"{store.url} holds no audit: expected the output of `volgrowth audit`")
        self.store, self.found = store, CheckedOutput(store.url)
        self.manifest = Manifest.from_json(store.read_json(MANIFEST), store.path(MANIFEST))
        self.sampled = True  # unless the summary says otherwise

    def run(self) -> CheckedOutput:
        self._json(MANIFEST, "restore it from a copy, or audit into another output")
        counted = self._rows(SCORES_FOLDER, FINDINGS_FILE)
        if self.manifest.holdout:
            self._rows(HOLDOUT_FOLDER, HOLDOUT_FINDINGS_FILE)
        self._summary(counted)
        self._listings()
        self._read(SUCCESS, lambda data: data, "run the same `volgrowth audit` again: it has not finished")
        self._others()
        self.found.verified.sort()
        return self.found

    def _rows(self, folder: str, name: str) -> tuple[int, int] | None:
        """Verify the fragments and the findings of a data set, a shard's rows at a time.

        Returns:
            The number of rows and of those with a score, if all fragments are right.
        """
        shards = [shard for shard in self.manifest.shards if shard.folder == folder]
        findings = self._findings(name, shards)
        whole, same, scored = bool(shards), True, 0
        for table in read_ahead(self._fragment, shards, 1 if self.store.local else READERS):
            beside = next(findings, None)
            if table is None:
                whole = False
                continue
            scored += pc.sum(pc.equal(table["status"], Status.OK.value)).as_py() or 0
            same = same and (beside is None or beside.equals(table.select(_SHARED)))
        next(findings, None)  # to the end of the file, where it is known whether it is whole
        if not whole:
            return None
        if not same and name in self.found.verified:
            self._bad(name, "its rows, ids or growth are not those of the scores")
        self.found.rows[folder] = shards[-1].stop
        return shards[-1].stop, scored

    def _findings(self, name: str, shards: list[Shard]) -> Iterator[pa.Table]:
        """Verify findings, and yield what they share with the scores, a shard's rows at a time, as long as it can."""
        if not self._is_there(name, AUDIT_AGAIN):
            return
        try:
            (rows, footer), columns = self.store.read_footer(name), self.store.read_schema(name).names
            self.found.verified.append(name)
            if not self.store.has_seal(name):
                self.found.unsealed.append(name)
            if lacking := [column for column in NEEDED_FINDINGS if column not in columns]:
                self._bad(name, f"it lacks the column {lacking[0]}")
            elif footer.get("config_digest", "") != self.manifest.config_digest:
                self._bad(name, "it is of another audit")
            elif rows != sum(shard.rows for shard in shards):
                self._bad(name, "its rows, ids or growth are not those of the scores")
            batches = self.store.read_batches(name, _SHARED)
            table = FINDINGS.empty_table().select(_SHARED)
            for shard in shards if name in self.found.verified else ():
                while len(table) < shard.rows:
                    batch = pa.Table.from_batches([next(batches)]).select(_SHARED).replace_schema_metadata()
                    table = pa.concat_tables([table, batch], promote_options="permissive")
                yield table.slice(0, shard.rows)
                table = table.slice(shard.rows)
            for _ in batches:
                pass
        except DamagedError as error:
            self._bad(name, error.why)
        except pa.ArrowException as error:
            self._bad(name, store_reason(error))

    def _fragment(self, shard: Shard) -> pa.Table | None:
        table = self._table(shard.name)
        if table is None:
            return None
        footer = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if not identity(self.manifest, shard).items() <= footer.items():
            self._bad(shard.name, "it is of another audit")
        elif not np.array_equal(table["row"].to_numpy(), np.arange(shard.start, shard.stop)):
            self._bad(shard.name, f"it does not hold the rows {shard.start} to {shard.stop - 1}, each once")
        else:
            return table.select(_KEPT).replace_schema_metadata()
        return None

    def _summary(self, counted: tuple[int, int] | None) -> None:
        summary = self._json(SUMMARY_FILE)
        if summary is None:
            return
        if wrong := misshapen(summary, SUMMARY_SHAPE):
            return self._bad(SUMMARY_FILE, wrong)
        if summary.get("config_digest") != self.manifest.config_digest:
            return self._bad(SUMMARY_FILE, "it is of another audit")
        if counted is not None and (summary["counts"]["rows"], summary["counts"]["ok"]) != counted:
            why = f"it counts other rows than the scores: {counted[1]} of {counted[0]} are ok"
            return self._bad(SUMMARY_FILE, why)
        self.sampled = bool(summary.get("verification"))
        self._pages(summary.get("pages"))
        return None

    def _pages(self, digests: Any) -> None:
        """Verify the report and its figures, whose digests the summary holds."""
        fix = f"run `volgrowth report {self.store.url}`"
        if not isinstance(digests, dict):  # an older version wrote the summary
            figures = [f"{FIGURES_FOLDER}/{name}" for name in self.store.names(FIGURES_FOLDER)]
            for name in (REPORT_FILE, *figures):
                self._read(name, lambda data: data, fix)
                self.found.unsealed.append(name)
            return
        for name, digest in digests.items():
            fix = f"run `volgrowth report {self.store.url}{' --redact' if name == REDACTED_FILE else ''}`"
            data = self._read(name, lambda data: data, fix)
            if data is not None and hashlib.sha256(data).hexdigest() != digest:
                self._bad(name, "it has changed since it was written", fix)

    def _listings(self) -> None:
        for folder, data in ((SCORES_FOLDER, self.manifest.data), (HOLDOUT_FOLDER, self.manifest.holdout)):
            if data is None:
                continue
            names = [chunk_name(folder, len(data.grown), chunk) for chunk in range(len(data.listing["starts"]))]
            tables = [self._table(name) for name in names]
            if all(table is not None for table in tables) and not listing_is_whole(self.store, folder, data):
                self._bad(names[0], "it does not list the files that the manifest names")

    def _others(self) -> None:
        """Verify what other commands wrote, and what an audit can do without; the rest is unknown."""
        verify = f"run `volgrowth verify {self.store.url}` with the same --samples"
        fixes = {"verification": verify, RUNS_FOLDER: AUDIT_AGAIN, LISTING_FOLDER: AUDIT_AGAIN, "": AUDIT_AGAIN}
        seen = {*self.found.verified, *(bad.name for bad in self.found.bad)}
        for folder in (*fixes, SCORES_FOLDER, HOLDOUT_FOLDER, FIGURES_FOLDER):
            for name in self.store.names(folder):
                path = f"{folder}/{name}".lstrip("/")
                if path in seen or name.startswith(".") or (not folder and name in _FOLDERS):
                    continue
                if (folder in fixes and folder) or name.startswith("cascade-") or name in _BESIDE:
                    (self._table if name.endswith(".parquet") else self._json)(path, fixes[folder])
                    if path in _OF_SAMPLES and path in self.found.verified and not self.sampled:
                        self._bad(path, _EARLIER, verify, by_audit=False)
                elif path == CURATION:
                    self._list(f"run `volgrowth curate {self.store.url}` again")
                elif path == REDACTED_FILE:
                    self._bad(path, _EARLIER, f"run `volgrowth report {self.store.url} --redact`", by_audit=False)
                else:
                    self.found.unknown.append(path)

    def _list(self, fix: str) -> None:
        """Verify a curation list."""
        try:
            if why := wrong_list(self.store, self.manifest):
                return self._bad(CURATION, why, fix, by_audit=False)
            self.found.verified.append(CURATION)
            if not self.store.has_seal(CURATION):
                self.found.unsealed.append(CURATION)
        except DamagedError as error:
            self._bad(CURATION, error.why, fix, by_audit=False)

    def _table(self, name: str, fix: str = AUDIT_AGAIN) -> pa.Table | None:
        return self._read(name, lambda data: self.store.parsed_table(name, data), fix)

    def _json(self, name: str, fix: str = AUDIT_AGAIN) -> dict[str, Any] | None:
        content = self._read(name, lambda data: self.store.parsed_json(name, data), fix)
        shape = SHAPES.get(name.partition("/")[0])
        if content is not None and shape and (wrong := misshapen(content, shape)):
            self._bad(name, wrong, fix)
            return None
        return content

    def _read(self, name: str, parse: Callable[[bytes], T], fix: str) -> T | None:
        """Return what a file holds, and count it among the right ones; None if it is not right."""
        if not self._is_there(name, fix):
            return None
        data = self.store.read(name)
        try:
            content = parse(data)
        except DamagedError as error:
            self._bad(name, error.why, fix)
            return None
        self.found.verified.append(name)
        if name.endswith((".parquet", ".json")) and not has_seal(data):
            self.found.unsealed.append(name)
        return content

    def _is_there(self, name: str, fix: str) -> bool:
        if self.store.exists(name):
            return True
        folder, _, last = name.rpartition("/")
        if last in self.store.names(folder):
            self._bad(name, "a folder is in its place", f"move that away, then {fix}")
        else:
            self._bad(name, "it is missing", fix)
        return False

    def _bad(self, name: str, why: str, fix: str = AUDIT_AGAIN, by_audit: bool = True) -> None:
        if name in self.found.verified:
            self.found.verified.remove(name)
        self.found.bad.append(BadFile(name, why, fix, by_audit))
