"""The analysis of an audit whose rows are all scored: its stages in order, and who works at them.

Rows are surveyed, judged, seen and written a shard at a time, so that the driver holds no table of them. Few rows are
judged in this process and kept; more are judged into part files, by the workers of the engine if they are very many.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import pyarrow as pa

from volgrowth.analysis.embeddings import open_embeddings
from volgrowth.analysis.findings import Analysis, Decided
from volgrowth.analysis.parts.database import open_database
from volgrowth.analysis.parts.judge import ANALYSED, Judge, ScoreTable
from volgrowth.analysis.parts.stored import StoredRows
from volgrowth.audit.engine.ledger import Task
from volgrowth.audit.engine.progress import AuditProgress
from volgrowth.audit.engine.running import run_tasks
from volgrowth.audit.engine.session import Session
from volgrowth.audit.output.fragments import read_scores, reconcile
from volgrowth.audit.output.judged import ScoreReader, judge_shard, remove_judged
from volgrowth.audit.output.listings import open_frozen_data
from volgrowth.audit.output.manifest import HOLDOUT_FOLDER, SCORES_FOLDER, Shard
from volgrowth.audit.output.result import FINDINGS_FILE, HOLDOUT_FINDINGS_FILE, Audit, open_audit
from volgrowth.audit.workers.judging import JudgingWorker
from volgrowth.errors import DamagedError, OutputError
from volgrowth.records import FINDINGS
from volgrowth.storage.places import read_ahead

MANY = 1_000_000
"""Rows from which on workers are started to judge them: to start one takes as long as to judge some 100,000 rows."""


def write_findings(session: Session, quiet: bool) -> Analysis:
    """Analyse all rows and write the findings, those of the audited rows a shard at a time.

    Returns:
        What is known beside the findings.

    Raises:
        DamagedError: a fragment is damaged.
        OutputError: a fragment is missing, or the disk has no room.
    """
    store, manifest = session.store, session.manifest
    metadata = {"schema_version": str(manifest.schema_version), "config_digest": manifest.config_digest}
    with decided(session, quiet) as found:
        reconcile(store, manifest)
        with store.table_writer(FINDINGS_FILE, FINDINGS, metadata) as writer:
            for part in found.findings():
                writer.write(part)
                session.lock.check()
        analysis = found.analysis()
    if analysis.holdout is not None:
        store.write_table(HOLDOUT_FINDINGS_FILE, analysis.holdout, metadata)
    remove_judged(store)
    return analysis


@contextmanager
def decided(session: Session, quiet: bool) -> Iterator[Decided]:
    """Give the verdicts of all rows, beside the scores of the reference audit if there is one."""
    config, store, manifest = session.config, session.store, session.manifest
    other = open_audit(config.reference) if config.reference else None
    reference = None if other is None else ScoreReader(other.store, other.frozen)

    def judge_shards(judge: Judge, shards: Sequence[Shard]) -> None:
        _judge_shards(session, judge, reference, shards, quiet)

    holdout = None
    if manifest.holdout:
        scores = read_scores(store, manifest, HOLDOUT_FOLDER, ANALYSED)
        holdout = ScoreTable(scores, None if other is None else _held_out(other))
    rows = StoredRows(store, manifest, reference, judge_shards)
    with ExitStack() as opened:
        embeddings = None
        if config.embedding_column:
            source = open_frozen_data(store, manifest, SCORES_FOLDER)
            copied = open_embeddings(source, config.embedding_column, config.embedding_similarity)
            embeddings = opened.enter_context(copied)
        database = opened.enter_context(open_database(rows.count))
        share = config.screen_share if config.cascade else None
        yield Decided(database, rows, holdout, share, embeddings)


def _held_out(other: Audit) -> pa.Table | None:
    """Return the held-out scores of the reference audit."""
    try:
        return other.holdout_scores
    except DamagedError as error:  # of another output, which is not mended here
        raise OutputError(str(error)) from None


def _judge_shards(
    session: Session, judge: Judge, reference: ScoreReader | None, shards: Sequence[Shard], quiet: bool
) -> None:
    """Judge shards and publish their parts: by workers if there are very many rows, or by threads of this process."""
    rows = sum(shard.rows for shard in shards)
    progress = AuditProgress(rows, len(shards), quiet=quiet, doing="judging")
    if session.config.engine == "ray" and rows > MANY:

        def task(shard: Shard) -> Task:
            def done(_: None) -> list[Task]:
                progress.advance(shard.rows, 0)
                return []

            return Task(f"{shard.name}, judging", "judge", (shard,), done)

        worker = partial(JudgingWorker, judge=judge, reference=reference)
        run_tasks(session, worker, map(task, shards), len(shards), progress, gpus=False)
        return

    def work(shard: Shard) -> Shard:
        judge_shard(session.store, shard, judge, reference)
        return shard

    with progress:
        for shard in read_ahead(work, shards, os.cpu_count() or 1):
            progress.advance(shard.rows, 0)
            session.pulse(progress, 1)
