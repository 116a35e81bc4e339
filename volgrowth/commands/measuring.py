"""What `volgrowth audit` does for an audit that is not finished: score, analyse, and write the findings.

`volgrowth.commands.audit` tells the stages. This module loads torch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

import pyarrow.compute as pc

from volgrowth.analysis.caveats import with_caveats
from volgrowth.analysis.findings import Analysis
from volgrowth.analysis.parts.database import check_room
from volgrowth.analysis.summary import SUMMARISED, summarize_audit
from volgrowth.audit.engine.batch_size import kept_tuning, settle_batch
from volgrowth.audit.engine.ledger import Task
from volgrowth.audit.engine.model_check import check_model_tasks, kept_check
from volgrowth.audit.engine.noise_floor import NoiseFloor, noise_floor
from volgrowth.audit.engine.progress import AuditProgress
from volgrowth.audit.engine.running import run_tasks
from volgrowth.audit.engine.session import Session
from volgrowth.audit.engine.shard_tasks import Report, ShardTasks
from volgrowth.audit.output.fragments import published
from volgrowth.audit.output.lock import Lock
from volgrowth.audit.output.manifest import MANIFEST, SUCCESS, Manifest, Shard
from volgrowth.audit.output.mending import say_scored_again, set_aside
from volgrowth.audit.output.result import SUMMARY_FILE, Audit
from volgrowth.audit.output.runs import Tally, total_effort
from volgrowth.audit.scoring.cascade import STAGES, Chosen, forget
from volgrowth.audit.scoring.worker import ScoringWorker
from volgrowth.commands.analysing import decided, write_findings
from volgrowth.commands.report import SAMPLES_FILE, write_report
from volgrowth.config import AuditConfig
from volgrowth.errors import DamagedError
from volgrowth.records import Status
from volgrowth.storage.store import Store


def measure_rows(
    config: AuditConfig, manifest: Manifest, store: Store, lock: Lock, failed: list[Shard], quiet: bool
) -> None:
    """Score what is not scored yet, analyse all of it, and write the findings, the report and the marker of the end.

    Args:
        config: the settings.
        manifest: the frozen manifest.
        store: the output, fenced by `lock`.
        lock: the lock of this driver.
        failed: shards whose rows without a score are scored again.
        quiet: show no progress.
    """
    check_room(manifest.data.rows)
    with Session(config, manifest, store, lock) as session:
        analysis = _measured(session, failed, quiet)
    _write_summary(store, analysis, config)
    del analysis
    write_report(Audit(store, store.read_json(MANIFEST)))
    store.write(SUCCESS, b"")


def score_alone(config: AuditConfig, manifest: Manifest, store: Store, lock: Lock, quiet: bool) -> None:
    """Score every row, and analyse nothing: the arguments are those of `measure_rows`."""
    with Session(config, manifest, store, lock) as session:
        _score(session, [], quiet)


def _measured(session: Session, failed: list[Shard], quiet: bool) -> Analysis:
    """Score what is not scored yet, analyse all of it, and write the findings.

    A file that turns out to be damaged is made again.
    """
    seen = set[str]()
    while True:
        try:
            _score(session, failed, quiet)
            return write_findings(session, quiet)
        except DamagedError as error:
            if error.name in seen:
                raise
            seen.add(error.name)
            set_aside(session.store, session.manifest, error)


def _score(session: Session, failed: list[Shard], quiet: bool) -> None:
    """Score the shards that are not published, then the rows of `failed` without a score, then a cascade's choice."""
    settle_batch(session)
    store, shards, floor = session.store, session.manifest.shards, NoiseFloor(session)
    done = published(store, session.manifest)
    todo = [shard for shard in shards if shard.name not in done]
    failed = [shard for shard in failed if shard.name in done]
    say_scored_again(store, todo)
    rows, left = (sum(shard.rows for shard in some) for some in (shards, todo))
    progress = AuditProgress(rows, len(shards), rows - left, len(shards) - len(todo), quiet=quiet)
    first = check_model_tasks(session) if todo else []
    _score_shards(session, floor, ((shard, None) for shard in todo), len(todo), progress, first)
    rows = sum(int(done[shard.name]["failed"]) for shard in failed)
    progress = AuditProgress(rows, len(failed), quiet=quiet, doing="retrying")
    _score_shards(session, floor, ((shard, _failed_rows(store, shard)) for shard in failed), len(failed), progress)
    if session.config.cascade:
        _complete_cascade(session, floor, bool(failed), quiet)


def _score_shards(
    session: Session,
    floor: NoiseFloor,
    shards: Iterable[tuple[Shard, Sequence[int] | None]],
    count: int,
    progress: AuditProgress,
    first: Sequence[Task] = (),
) -> None:
    """Do the tasks of `first`, and score the given rows of each shard, all of them for None."""
    report = _reporter(session, floor, progress)
    tasks = (ShardTasks(shard, report, rows).task() for shard, rows in shards)
    run_tasks(session, ScoringWorker, chain(first, tasks), count, progress)


def _complete_cascade(session: Session, floor: NoiseFloor, retried: bool, quiet: bool) -> None:
    """Measure the rows that passed the screen of a cascade, then a sample of the others.

    The rows are chosen once and kept in the output, so that a resumed audit measures the same ones; rows that were
    `retried` change the choice.
    """
    config, manifest, store = session.config, session.manifest, session.store
    if retried:
        forget(store)
    for stage in STAGES:
        chosen = Chosen.load(store, stage, manifest.data.rows)
        if chosen is None:
            with decided(session, quiet) as found:
                screening = found.screening
            assert screening is not None  # the analysis of a cascade has one
            rows = screening.passing if stage == "passed" else screening.sample(config.screen_sample, config.seed)
            chosen = Chosen(stage, rows, manifest.data.rows)
            chosen.save(store)
        _measure_screened(session, floor, chosen.todo(store, manifest, published(store, manifest)), stage, quiet)


def _measure_screened(
    session: Session, floor: NoiseFloor, rows: dict[Shard, list[int]], stage: str, quiet: bool
) -> None:
    """Measure rows of published shards that were only screened, for a stage of a cascade."""
    doing = f"measuring {stage}"
    progress = AuditProgress(sum(map(len, rows.values())), len(rows), quiet=quiet, doing=doing)
    report = _reporter(session, floor, progress)

    def task(shard: Shard) -> Task:
        arguments = shard, rows[shard], stage
        return Task(f"{shard.name}, {doing}", "complete", arguments, lambda tally: report(shard, tally))

    run_tasks(session, ScoringWorker, map(task, rows), len(rows), progress)


def _reporter(session: Session, floor: NoiseFloor, progress: AuditProgress) -> Report:
    """Return the callback that updates the progress display and the run record after each published shard."""

    def report(shard: Shard, tally: Tally) -> list[Task]:
        progress.advance(tally.images, tally.failed)
        session.run.add(tally)
        session.run.event("shard", shard=shard.name, **asdict(tally))
        return floor.tasks(shard, tally)

    return report


def _failed_rows(store: Store, shard: Shard) -> list[int]:
    table = store.read_table(shard.name)
    return table.filter(pc.not_equal(table["status"], Status.OK.value))["row"].to_pylist()


def _write_summary(store: Store, analysis: Analysis, config: AuditConfig) -> None:
    """Write the summary, which has no proof by samples: `verify` drew them for the audit as it was before."""
    audit = Audit(store, store.read_json(MANIFEST), columns=SUMMARISED)
    sampled = Chosen.load(store, "sampled") if config.cascade else None
    run = _run_facts(store, config)
    summary = summarize_audit(audit, analysis, config, run, sampled.rows if sampled else None)
    if store.exists(SAMPLES_FILE):
        summary = with_caveats({**summary, "verification_outdated": True})
    store.write_json(SUMMARY_FILE, summary)


def _run_facts(store: Store, config: AuditConfig) -> dict[str, Any]:
    """Describe how the scores were made: time, devices and arithmetic, the model's check, noise floor, batch size."""
    tuned, checked, floor = kept_tuning(store), kept_check(store), noise_floor(store)
    arithmetic = floor.pop("arithmetic", None) if floor else None
    batch = tuned.batch_size if tuned else config.batch_size
    if arithmetic:
        arithmetic |= {"batch_size": batch, "layout": tuned.layout if tuned else None}
    facts = {"model_check": checked, "noise_floor": floor, "batch_size": batch, "arithmetic": arithmetic}
    return {**total_effort(store), **facts, "tuned_on": tuned.device if tuned else None}
