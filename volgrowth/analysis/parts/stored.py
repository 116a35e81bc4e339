"""The rows of an audit in its output: read a shard at a time, and judged into part files if they are many."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa

from volgrowth.analysis.parts.database import FEW
from volgrowth.analysis.parts.judge import ANALYSED, REFERENCE, Judge, ScoreTable
from volgrowth.analysis.parts.rows import JudgedRows, Rows
from volgrowth.analysis.parts.survey import SURVEYED
from volgrowth.audit.output.fragments import READERS, read_fragment
from volgrowth.audit.output.judged import (
    ScoreReader,
    is_judged,
    judge_shard,
    judged_name,
    judged_rows,
    scored_shards,
)
from volgrowth.audit.output.manifest import Manifest, Shard
from volgrowth.audit.output.mending import tell_user
from volgrowth.errors import DamagedError, OutputError
from volgrowth.records import SCORES
from volgrowth.storage.places import read_ahead
from volgrowth.storage.store import Store

T = TypeVar("T")
JudgeShards = Callable[[Judge, Sequence[Shard]], None]


class StoredRows(Rows):
    """The audited rows of an output.

    Args:
        store: the output.
        manifest: its manifest.
        reference: scores of the same rows under a reference model.
        judge_shards: judges shards and publishes their parts, with workers or here.
    """

    def __init__(self, store: Store, manifest: Manifest, reference: ScoreReader | None, judge_shards: JudgeShards):
        self._store, self._reference, self._judge_shards = store, reference, judge_shards
        self._shards = scored_shards(manifest)
        self.count = sum(shard.rows for shard in self._shards)
        self._threads = (os.cpu_count() or 1) if store.local else READERS

    def scores(self) -> Iterator[pa.Table]:
        return self._each(lambda shard: read_fragment(self._store, shard, SURVEYED))

    def some(self, rows: np.ndarray) -> ScoreTable:
        columns = [name for name in ANALYSED if name != "image_id"]

        def chosen(shard: Shard) -> tuple[pa.Table, pa.Table | None] | None:
            mine = rows[slice(*np.searchsorted(rows, [shard.start, shard.stop]))] - shard.start
            if not len(mine):
                return None
            scores, other = read_fragment(self._store, shard, columns).take(pa.array(mine)), None
            if self._reference:
                other = self._reference.read(shard.start, shard.stop, REFERENCE).take(pa.array(mine))
            return scores, other

        found = [pair for pair in self._each(chosen) if pair is not None]
        others = [other for _, other in found if other is not None]
        scores = pa.concat_tables([SCORES.empty_table().select(columns), *(scores for scores, _ in found)])
        return ScoreTable(scores, pa.concat_tables(others) if others else None)

    def judged(self, judge: Judge) -> JudgedRows:
        if self.count <= FEW:
            tables = list(self._each(lambda shard: judged_rows(self._store, shard, judge, self._reference)))
            return lambda columns=None: tables
        done = self._each(lambda shard: is_judged(self._store, shard, judge, self._reference))
        todo = [shard for shard, there in zip(self._shards, done, strict=True) if not there]
        self._judge_shards(judge, todo)

        def read(columns: Sequence[str] | None = None) -> Iterable[pa.Table]:
            return self._each(lambda shard: self._part(judge, shard, columns))

        return read

    def _part(self, judge: Judge, shard: Shard, columns: Sequence[str] | None) -> pa.Table:
        """Read the part of a shard, and make it again if it is damaged or gone."""
        name = judged_name(shard)
        try:
            return self._store.read_table(name, columns)
        except DamagedError as error:
            tell_user(f"{error.path} is damaged ({error.why}): its rows are judged again")
        except OutputError:
            if self._store.exists(name):
                raise
            tell_user(f"{self._store.path(name)} is gone: its rows are judged again")
        judge_shard(self._store, shard, judge, self._reference)
        return self._store.read_table(name, columns)

    def _each(self, function: Callable[[Shard], T]) -> Iterator[T]:
        return read_ahead(function, self._shards, self._threads)
