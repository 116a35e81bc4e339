"""`volgrowth audit`: measure every image of a data set under a model, in four stages.

1. freeze: write down settings, model and data set in the manifest, or check them against the manifest that is there
2. score: have workers measure every row that has no score yet
3. analyse: calibrate the scores, and flag images
4. write: findings, summary and report, and last of all the marker that the audit is done
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from itertools import chain
from math import prod
from typing import Any

import pyarrow.compute as pc

from volgrowth.analysis.calibration.expected_scores import MIN_IMAGES
from volgrowth.analysis.findings import ANALYSED, Analysis, Reference, analyse
from volgrowth.analysis.summary import SUMMARISED, summarize_audit
from volgrowth.audit.engine.batch_size import kept_batch, settle_batch
from volgrowth.audit.engine.ledger import Task
from volgrowth.audit.engine.model_check import check_model_tasks, kept_check
from volgrowth.audit.engine.noise_floor import NoiseFloor, noise_floor
from volgrowth.audit.engine.progress import AuditProgress
from volgrowth.audit.engine.running import run_tasks
from volgrowth.audit.engine.session import Session
from volgrowth.audit.engine.shard_tasks import Report, ShardTasks
from volgrowth.audit.output.checking import clear_bad_files, verify_files
from volgrowth.audit.output.fragments import published, reconcile
from volgrowth.audit.output.freezing import FrozenAudit, freeze
from volgrowth.audit.output.lock import driving
from volgrowth.audit.output.manifest import HOLDOUT_FOLDER, MANIFEST, SCORES_FOLDER, SUCCESS, DataInfo, Manifest, Shard
from volgrowth.audit.output.mending import say_scored_again, set_aside
from volgrowth.audit.output.result import (
    FINDINGS_FILE,
    HOLDOUT_FINDINGS_FILE,
    REPORT_FILE,
    SUMMARY_FILE,
    Audit,
    open_audit,
)
from volgrowth.audit.output.runs import Tally, total_effort
from volgrowth.audit.output.unchanged import check_unchanged
from volgrowth.audit.scoring.cascade import STAGES, Chosen, forget
from volgrowth.audit.scoring.worker import ScoringWorker
from volgrowth.commands.report import write_report
from volgrowth.config import AuditConfig, PaperMeasure
from volgrowth.errors import DamagedError, DataError, OutputError, UsageError
from volgrowth.models import inspect_model
from volgrowth.plain import print_plain
from volgrowth.records import ModelInfo, Status
from volgrowth.report.words import cascade_sentences, failure_sentences, headline_lines
from volgrowth.sources import open_source
from volgrowth.storage.store import Store


def run_audit(config: AuditConfig, *, quiet: bool = False, extend: bool = False, retry_failed: bool = False) -> Audit:
    """Audit a data set, or resume the audit that `config.output` holds.

    Args:
        config: the settings; see `AuditConfig.build`.
        quiet: show no progress.
        extend: audit the files that the data set gained since into the same output.
        retry_failed: score the rows again that have no score.

    Returns:
        The finished audit.

    Raises:
        VolgrowthError: model, data, output or engine failed; the message is one sentence. Shards that were published
            stay, and the same call resumes.
        KeyboardInterrupt: passed on after an orderly end; the same call resumes.
    """
    store, inputs = Store(config.output), inspect_inputs(config)
    if not quiet:
        print_opened(inputs.manifest)
    if store.exists(SUCCESS) and not extend and not retry_failed:
        manifest = freeze(store, inputs)
        check_unchanged(store, manifest, inputs.listings)
        if not verify_files(store).bad:
            return _finished_before(config.output, quiet)
    with driving(store) as lock:
        store = lock.fenced()
        manifest = freeze(store, inputs, extend=extend)
        check_unchanged(store, manifest, inputs.listings)
        failed = _failed_shards(store, manifest) if retry_failed else []
        if store.exists(SUCCESS) and not failed and not clear_bad_files(store):
            return _finished_before(config.output, quiet)
        store.delete(SUCCESS)
        with Session(config, manifest, store, lock) as session:
            analysis = _measured(session, failed, quiet)
        _write_tables(store, analysis, config)
        del analysis  # its tables are as large as all that the report reads
        write_report(Audit(store, store.read_json(MANIFEST)))
        store.write(SUCCESS, b"")
    return open_audit(config.output)


def _finished_before(output: str, quiet: bool) -> Audit:
    """Open an audit that an earlier command finished, and say that this one measured nothing."""
    audit = open_audit(output)
    if not quiet:
        day, _, time = audit.summary["created"].rstrip("Z").partition("T")
        print_plain(f"finished on {day} at {time} UTC, nothing was measured")
    return audit


def audit_lines(audit: Audit) -> list[str]:
    """Return what `volgrowth audit` prints about a finished audit."""
    counts, report = audit.summary["counts"], audit.store.path(REPORT_FILE)
    said = f"{counts['ok']} of {counts['rows']} images scored; report: {report}"
    failures = [f"no score: {why}" for why in failure_sentences(audit.summary)]
    return [said, *failures, *headline_lines(audit.summary), *cascade_sentences(audit.summary.get("cascade"))]


def print_opened(manifest: Manifest) -> None:
    """Print what was opened of the data set and of the held-out set, and what was left aside, two lines each.

    Of the model only what its files hold beyond what was used.
    """
    for line in manifest.model.lines():
        print_plain(line)
    for name, data in (("opened", manifest.data), ("held out", manifest.holdout)):
        if data and data.opened:
            print_plain("\n".join(data.opened.lines(name)))


def failed_share(audit: Audit) -> float:
    """Return the share of the audited rows that have no score."""
    counts = audit.summary["counts"]
    return (counts["rows"] - counts["ok"]) / max(counts["rows"], 1)


def inspect_inputs(config: AuditConfig) -> FrozenAudit:
    """Describe model and data set as they are now, and check that they fit the settings and each other.

    Only headers, listings and footers are read.

    Raises:
        UsageError: settings, model, data set or reference audit do not fit each other.
        DataError: a data set cannot be opened, or the held-out set is too small or the audited one.
        ModelError: the model is not there, or is none that can be audited.
    """
    model = inspect_model(**config.model_arguments)
    _check_conditions(config, model)
    asked: dict[str, Any] = {"condition_column": config.condition_column, "max_bytes": config.max_bytes}
    source = open_source(
        config.data,
        config.split,
        config.image_column,
        config.id_column,
        **asked,
        configuration=config.data_config,
        kind=config.data_kind,
    )
    listings = {SCORES_FOLDER: source.listing}
    data, holdout = DataInfo.of(config.data, config.split, source.listing, source.opened), None
    if config.holdout:
        split = config.holdout_split
        asked |= {"configuration": config.holdout_config, "kind": config.holdout_kind}
        held_out = open_source(config.holdout, split, config.image_column, **asked)
        listings[HOLDOUT_FOLDER] = held_out.listing
        holdout = DataInfo.of(config.holdout, split, held_out.listing, held_out.opened)
        named, audited = (
            (config.holdout, config.holdout_config, split),
            (config.data, config.data_config, config.split),
        )
        if holdout.fingerprint == data.fingerprint and named == audited:
            raise DataError(
                f"holdout {config.holdout} is the audited set itself: give images the model was not trained on"
            )
        if holdout.rows < MIN_IMAGES:
            raise DataError(f"holdout {config.holdout} has {holdout.rows} images: expected at least {MIN_IMAGES}")
    _check_tangents(config, model)
    manifest = Manifest.of(config, model, data, holdout)
    if config.reference:
        _check_reference(config.reference, manifest)
    return FrozenAudit(manifest, listings)


def _check_conditions(config: AuditConfig, model: ModelInfo) -> None:
    """Check that the model takes the conditions of the data set, and gets those that it needs."""
    given = "class" if config.class_column else "caption" if config.caption_column else None
    if given and given != model.condition:
        takes = f"takes a {model.condition}_column" if model.condition else "takes no conditions"
        raise UsageError(f"{given}_column {config.condition_column} was given, and model {config.model} {takes}")
    if model.condition and not given and not model.has_null:
        raise UsageError(
            f"model {config.model} cannot be evaluated without a {model.condition}: expected {model.condition}_column "
            f"(--{model.condition}-column)"
        )
    if config.guidance is not None and not model.has_null:
        raise UsageError(
            f"guidance {config.guidance:g} was given, and model {config.model} does not support unconditional input, "
            f"which guidance needs: leave guidance out"
        )


def _check_tangents(config: AuditConfig, model: ModelInfo) -> None:
    dimension, measure = prod(model.state_shape), config.measure
    if isinstance(measure, PaperMeasure) and measure.num_tangents > dimension:
        raise UsageError(
            f"setting measure.num_tangents: {measure.num_tangents} axes in {dimension} dimensions: expected "
            f"at most as many"
        )


def _check_reference(reference: str, manifest: Manifest) -> None:
    """Check that the reference audit measured the same rows by the same measure, under another model."""
    other = open_audit(reference).frozen
    if other.config.get("cascade"):
        raise UsageError(
            f"--reference {reference}: it is a cascade, which did not measure most rows; expected an audit of all rows"
        )
    pairs = {
        "data set": (other.data.fingerprint, manifest.data.fingerprint),
        "held-out set": (
            other.holdout and other.holdout.fingerprint,
            manifest.holdout and manifest.holdout.fingerprint,
        ),
        "measure": (other.config["measure"], manifest.config["measure"]),
    }
    for name, (there, here) in pairs.items():
        if there != here:
            raise UsageError(
                f"--reference {reference}: its {name} is another; expected an audit of the same rows, with the same "
                f"held-out set and preset, by a model that was not trained on them"
            )
    if other.model.hash == manifest.model.hash:
        raise UsageError(
            f"--reference {reference}: it audits the same model; expected one that was not trained on these images"
        )


def _measured(session: Session, failed: list[Shard], quiet: bool) -> Analysis:
    """Score what is not scored yet, and analyse all of it; a file that turns out to be damaged is made again."""
    seen = set[str]()
    while True:
        try:
            _score(session, failed, quiet)
            return _analyse(session.store, session.config)
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
            screening = _analyse(store, config).screening
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


def _failed_shards(store: Store, manifest: Manifest) -> list[Shard]:
    """Return the published shards that have rows without a score."""
    done = published(store, manifest)
    return [shard for shard in manifest.shards if int(done.get(shard.name, {}).get("failed", 0))]


def _failed_rows(store: Store, shard: Shard) -> list[int]:
    table = store.read_table(shard.name)
    return table.filter(pc.not_equal(table["status"], Status.OK.value))["row"].to_pylist()


def _analyse(store: Store, config: AuditConfig) -> Analysis:
    """Calibrate the scores, beside those of the reference audit if there is one."""
    audit, reference = Audit(store, store.read_json(MANIFEST), columns=ANALYSED), None
    if config.reference:
        other = replace(open_audit(config.reference), columns=ANALYSED)
        try:
            reference = Reference(other.scores, other.holdout_scores)
        except DamagedError as error:  # of another output, which is not mended here
            raise OutputError(str(error)) from None
    return analyse(audit.scores, audit.holdout_scores, reference, config.screen_share if config.cascade else None)


def _write_tables(store: Store, analysis: Analysis, config: AuditConfig) -> None:
    """Write findings and summary."""
    audit = Audit(store, store.read_json(MANIFEST), columns=SUMMARISED)
    manifest = audit.frozen
    reconcile(store, manifest)
    metadata = {"schema_version": str(manifest.schema_version), "config_digest": manifest.config_digest}
    store.write_table(FINDINGS_FILE, analysis.findings, metadata)
    if analysis.holdout is not None:
        store.write_table(HOLDOUT_FINDINGS_FILE, analysis.holdout, metadata)
    sampled = Chosen.load(store, "sampled") if config.cascade else None
    run = _run_facts(store, config)
    store.write_json(SUMMARY_FILE, summarize_audit(audit, analysis, config, run, sampled.rows if sampled else None))


def _run_facts(store: Store, config: AuditConfig) -> dict[str, Any]:
    """Describe how the scores were made: time, devices and arithmetic, the model's check, noise floor, batch size."""
    batch = kept_batch(store) if config.batch_size is None else config.batch_size
    checked, floor = kept_check(store), noise_floor(store)
    arithmetic = floor.pop("arithmetic", None) if floor else None
    facts = {"model_check": checked, "noise_floor": floor, "batch_size": batch, "arithmetic": arithmetic}
    return {**total_effort(store), **facts}
