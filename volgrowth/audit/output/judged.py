"""Judged rows: one part file beside each fragment, which an audit of many rows makes on the way and removes at the end.

The footer of a part says by what it was judged and of which scores, so that one that is there is used again only if it
would be made again the same.
"""

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from volgrowth.audit.output.fragments import read_fragment, whole_footer
from volgrowth.audit.output.manifest import SCORES_FOLDER, Manifest, Shard
from volgrowth.errors import DamagedError, OutputError
from volgrowth.storage.store import Store

JUDGED_FOLDER = "analysis"


class RowJudge(Protocol):
    """Judges rows of scores, with `digest` for what it judges by, and the columns that it reads. It may be pickled."""

    @property
    def digest(self) -> str: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def reference_columns(self) -> tuple[str, ...]: ...
    def judge(self, scores: pa.Table, reference: pa.Table | None = None) -> pa.Table: ...


@dataclass(frozen=True)
class ScoreReader:
    """Scores of any stretch of the audited rows of a finished audit.

    Attributes:
        store: its output.
        manifest: its manifest.
    """

    store: Store
    manifest: Manifest

    @cached_property
    def _shards(self) -> list[Shard]:
        return sorted(scored_shards(self.manifest), key=lambda shard: shard.start)

    def read(self, start: int, stop: int, columns: Sequence[str]) -> pa.Table:
        """Return the scores of the rows from `start` up to `stop`.

        Raises:
            OutputError: they cannot be read, or are not all there.
        """
        first = max(0, bisect_right([shard.start for shard in self._shards], start) - 1)
        pieces = []
        for shard in self._shards[first:]:
            if shard.start >= stop:
                break
            try:
                table = read_fragment(self.store, shard, columns)
            except DamagedError as error:  # of another output, which is not mended here
                raise OutputError(str(error)) from None
            pieces.append(table.slice(max(0, start - shard.start), min(stop, shard.stop) - max(start, shard.start)))
        if sum(map(len, pieces)) != stop - start:
            raise OutputError(f"{self.store.url} has no rows {start} to {stop - 1}: expected an audit of the same rows")
        return pa.concat_tables(pieces)


def scored_shards(manifest: Manifest) -> list[Shard]:
    """Return the shards of the audited rows."""
    return [shard for shard in manifest.shards if shard.folder == SCORES_FOLDER]


def judged_name(shard: Shard) -> str:
    """Return the name of the part file of a shard."""
    return f"{JUDGED_FOLDER}/{shard.name.rpartition('/')[2]}"


def judge_shard(store: Store, shard: Shard, judge: RowJudge, reference: ScoreReader | None) -> None:
    """Judge the rows of a shard, and publish their part in one step."""
    rows = judged_rows(store, shard, judge, reference)
    store.write_table(judged_name(shard), rows, _mark(store, shard, judge, reference) or {})


def judged_rows(store: Store, shard: Shard, judge: RowJudge, reference: ScoreReader | None) -> pa.Table:
    """Return the judged rows of a shard."""
    scores, other = read_fragment(store, shard, judge.columns), None
    if reference is not None:
        other = reference.read(shard.start, shard.stop, judge.reference_columns)
    return judge.judge(scores, other)


def is_judged(store: Store, shard: Shard, judge: RowJudge, reference: ScoreReader | None) -> bool:
    """Return whether the part of a shard is there and whole, and would be made again the same."""
    mark, found = _mark(store, shard, judge, reference), whole_footer(store, judged_name(shard))
    return bool(mark) and found == (shard.rows, mark)


def remove_judged(store: Store) -> None:
    """Remove all parts."""
    for name in store.names(JUDGED_FOLDER):
        store.delete(f"{JUDGED_FOLDER}/{name}")
    if store.local:
        with suppress(OSError):
            Path(store.file_path(JUDGED_FOLDER)).rmdir()


def _mark(store: Store, shard: Shard, judge: RowJudge, reference: ScoreReader | None) -> dict[str, str] | None:
    """Say by what and of which scores a shard is judged; None if its scores have no seal to know them by."""
    seal = store.seal(shard.name)
    if seal is None:
        return None
    return {"judge": judge.digest, "scores": seal, "reference": reference.store.url if reference else ""}
