"""A whole audit: plan, score, reconcile, analyse, report. What `volgrowth audit` and `run_audit` do."""

from dataclasses import asdict
from math import prod

import pyarrow.compute as pc

from volgrowth.analysis.calibration.expected_scores import MIN_IMAGES
from volgrowth.analysis.findings import Analysis, Reference, analyse
from volgrowth.analysis.summary import summarize_audit
from volgrowth.audit.engine.batch_size import BATCH_FILE, settle_batch
from volgrowth.audit.engine.ledger import Task
from volgrowth.audit.engine.noise_floor import NOISE_FILE, NoiseFloor
from volgrowth.audit.engine.progress import AuditProgress
from volgrowth.audit.engine.running import run_tasks
from volgrowth.audit.engine.session import Session
from volgrowth.audit.engine.shard_tasks import Report, ShardTasks
from volgrowth.audit.output.fragments import published, reconcile
from volgrowth.audit.output.freezing import FrozenAudit, freeze
from volgrowth.audit.output.lock import driving
from volgrowth.audit.output.manifest import HOLDOUT_FOLDER, MANIFEST, SCORES_FOLDER, SUCCESS, DataInfo, Manifest, Shard
from volgrowth.audit.output.result import (
    FINDINGS_FILE,
    HOLDOUT_FINDINGS_FILE,
    REPORT_FILE,
    SUMMARY_FILE,
    Audit,
    open_audit,
)
from volgrowth.audit.output.runs import Tally, total_effort
from volgrowth.audit.scoring.cascade import STAGES, Chosen, forget
from volgrowth.audit.scoring.worker import ScoringWorker
from volgrowth.commands.report import write_report
from volgrowth.config import AuditConfig, PaperMeasure
from volgrowth.errors import DataError, UsageError
from volgrowth.models import inspect_model
from volgrowth.records import ModelInfo, Status
from volgrowth.report.words import cascade_sentences, title
from volgrowth.sources import open_source
from volgrowth.storage.store import Store


def run_audit(config: AuditConfig, *, quiet: bool = False, extend: bool = False, retry_failed: bool = False) -> Audit:
    """Audit a data set, or resume the audit that `config.output` holds.

    Args:
        extend: audit the files that the data set gained since into the same output.
        retry_failed: score again the rows that have no score.

    Raises:
        VolgrowthError: model, data, output or engine, in one sentence; what was published stays.
        KeyboardInterrupt: as it comes; what was published stays, and the same call resumes.
    """
    store, planned = Store(config.output), plan(config)
    if store.exists(SUCCESS) and not extend and not retry_failed:
        freeze(store, planned)
        return open_audit(config.output)
    with driving(store) as lock:
        manifest = freeze(store, planned, extend=extend)
        failed = _failed_shards(store, manifest) if retry_failed else []
        if store.exists(SUCCESS) and not failed:
            return open_audit(config.output)
        store.delete(SUCCESS)
        with Session(config, manifest, store, lock) as session:
            settle_batch(session)
            floor = NoiseFloor(session)
            _score(session, floor, failed, quiet)
            if config.cascade:
                _cascade(session, floor, bool(failed), quiet)
            audit, analysis = _analysed(config, store)
        _write(audit, analysis, config)
    return open_audit(config.output)


def _score(session: Session, floor: NoiseFloor, failed: list[Shard], quiet: bool) -> None:
    """Score the shards that are not there, and again the failed rows of those that are."""
    store, shards = session.store, session.manifest.shards
    done = published(store, session.manifest)
    todo = [shard for shard in shards if shard.name not in done]
    rows, left = (sum(shard.rows for shard in some) for some in (shards, todo))
    progress = AuditProgress(rows, len(shards), rows - left, len(shards) - len(todo), quiet=quiet)
    cases = (ShardTasks(shard, _report(session, floor, progress)) for shard in todo)
    run_tasks(session, ScoringWorker, (case.task() for case in cases), len(todo), progress)
    rows = sum(int(done[shard.name]["failed"]) for shard in failed)
    progress = AuditProgress(rows, len(failed), quiet=quiet, doing="retrying")
    cases = (ShardTasks(shard, _report(session, floor, progress), _failed_rows(store, shard)) for shard in failed)
    run_tasks(session, ScoringWorker, (case.task() for case in cases), len(failed), progress)


def _cascade(session: Session, floor: NoiseFloor, again: bool, quiet: bool) -> None:
    """Measure what passes the screen, then a sample of the rest: rows chosen by the first driver that got here."""
    config, manifest, store = session.config, session.manifest, session.store
    if again:
        forget(store)
    for stage in STAGES:
        chosen = Chosen.load(store, stage, manifest.data.rows)
        if chosen is None:
            screening = _analysed(config, store)[1].screening
            assert screening is not None  # the analysis has seen to it
            rows = screening.passing if stage == "passed" else screening.sample(config.screen_sample, config.seed)
            chosen = Chosen(stage, rows, manifest.data.rows)
            chosen.save(store)
        _complete(session, floor, chosen.todo(store, manifest, published(store, manifest)), stage, quiet)


def _complete(session: Session, floor: NoiseFloor, rows: dict[Shard, list[int]], stage: str, quiet: bool) -> None:
    """Measure rows of published shards, which were only screened, for a stage of a cascade."""
    doing = f"measuring {stage}"
    progress = AuditProgress(sum(map(len, rows.values())), len(rows), quiet=quiet, doing=doing)
    report = _report(session, floor, progress)

    def task(shard: Shard) -> Task:
        arguments = shard, rows[shard], stage
        return Task(f"{shard.name}, {doing}", "complete", arguments, lambda tally: report(shard, tally))

    run_tasks(session, ScoringWorker, map(task, rows), len(rows), progress)


def _report(session: Session, floor: NoiseFloor, progress: AuditProgress) -> Report:
    """Return the callback that updates the progress display and the run record after each published shard."""

    def report(shard: Shard, tally: Tally) -> list[Task]:
        progress.advance(tally.images, tally.failed)
        session.run.add(tally)
        session.run.event("shard", shard=shard.name, **asdict(tally))
        return floor.tasks(shard, tally)

    return report


def _failed_shards(store: Store, manifest: Manifest) -> list[Shard]:
    """Published shards with rows that have no score."""
    done = published(store, manifest)
    return [shard for shard in manifest.shards if int(done.get(shard.name, {}).get("failed", 0))]


def _failed_rows(store: Store, shard: Shard) -> list[int]:
    table = store.read_table(shard.name)
    return table.filter(pc.not_equal(table["status"], Status.OK.value))["row"].to_pylist()


def _write(audit: Audit, analysis: Analysis, config: AuditConfig) -> None:
    """Findings, summary, report, and last of all the word that it is done."""
    store, manifest = audit.store, audit.frozen
    reconcile(store, manifest)
    metadata = {"schema_version": str(manifest.schema_version), "config_digest": manifest.config_digest}
    store.write_table(FINDINGS_FILE, analysis.findings, metadata)
    if analysis.holdout is not None:
        store.write_table(HOLDOUT_FINDINGS_FILE, analysis.holdout, metadata)
    floor = store.read_json(NOISE_FILE) if store.exists(NOISE_FILE) else None
    batch = store.read_json(BATCH_FILE)["batch_size"] if config.batch_size is None else config.batch_size
    run = {**total_effort(store), "noise_floor": floor, "batch_size": batch}
    sampled = Chosen.load(store, "sampled") if config.cascade else None
    store.write_json(SUMMARY_FILE, summarize_audit(audit, analysis, config, run, sampled.rows if sampled else None))
    write_report(audit)
    store.write(SUCCESS, b"")


def plan(config: AuditConfig) -> FrozenAudit:
    """The plan of an audit from what model and data are now: headers, listings and footers only."""
    model = inspect_model(**config.model_arguments)
    _check_conditions(config, model)
    condition = config.condition_column
    source = open_source(config.data, config.split, config.image_column, config.id_column, condition_column=condition)
    listings = {SCORES_FOLDER: source.listing}
    data, holdout = DataInfo.of(config.data, config.split, source.listing), None
    if config.holdout:
        split = config.holdout_split
        held_out = open_source(config.holdout, split, config.image_column, condition_column=condition)
        listings[HOLDOUT_FOLDER] = held_out.listing
        holdout = DataInfo.of(config.holdout, split, listings[HOLDOUT_FOLDER])
        if holdout.fingerprint == data.fingerprint and config.holdout == config.data and split == config.split:
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
    """Whether the model takes what the data set gives, and gets what it needs.

    Raises:
        UsageError: it does not.
    """
    given = "class" if config.class_column else "caption" if config.caption_column else None
    if given and given != model.condition:
        takes = f"takes a {model.condition}_column" if model.condition else "takes no conditions"
        raise UsageError(f"{given}_column {config.condition_column} was given, and model {config.model} {takes}")
    if model.condition and not given and not model.has_null:
        raise UsageError(
            f"model {config.model} knows no image without a {model.condition}: expected {model.condition}_column "
            f"(--{model.condition}-column)"
        )
    if config.guidance is not None and not model.has_null:
        raise UsageError(
            f"guidance {config.guidance:g} was given, and model {config.model} does not know what no condition is: "
            f"leave guidance out"
        )


def _check_tangents(config: AuditConfig, model: ModelInfo) -> None:
    dimension, measure = prod(model.state_shape), config.measure
    if isinstance(measure, PaperMeasure) and measure.num_tangents > dimension:
        raise UsageError(
            f"setting measure.num_tangents: {measure.num_tangents} axes in {dimension} dimensions: expected "
            f"at most as many"
        )


def _check_reference(reference: str, manifest: Manifest) -> None:
    """The reference must have measured the same rows by the same measure, under another model.

    Raises:
        UsageError, OutputError: it has not.
    """
    other = open_audit(reference).frozen
    if other.config.get("cascade"):
        raise UsageError(f"--reference {reference}: it is a cascade, which did not measure most rows; expected without")
    pairs = {
        "data": (other.data.fingerprint, manifest.data.fingerprint),
        "held-out": (other.holdout and other.holdout.fingerprint, manifest.holdout and manifest.holdout.fingerprint),
        "measure": (other.config["measure"], manifest.config["measure"]),
    }
    for name, (there, here) in pairs.items():
        if there != here:
            what = "measure is another" if name == "measure" else f"{name} set is another"
            raise UsageError(
                f"--reference {reference}: its {what}; expected an audit of the same rows, with the same held-out "
                f"set and preset, by a model that was not trained on them"
            )
    if other.model.hash == manifest.model.hash:
        raise UsageError(
            f"--reference {reference}: it audits the same model; expected one that was not trained on these images"
        )


def audit_lines(audit: Audit) -> list[str]:
    """Return what `volgrowth audit` prints about a finished audit."""
    counts, report = audit.summary["counts"], audit.store.path(REPORT_FILE)
    said = f"{counts['ok']} of {counts['rows']} images scored; report: {report}"
    return [said, title(audit.summary), *cascade_sentences(audit.summary.get("cascade"))]


def failed_share(audit: Audit) -> float:
    """Share of the audited rows that have no score."""
    counts = audit.summary["counts"]
    return (counts["rows"] - counts["ok"]) / max(counts["rows"], 1)


def _analysed(config: AuditConfig, store: Store) -> tuple[Audit, Analysis]:
    audit, reference = Audit(store, store.read_json(MANIFEST)), None
    if config.reference:
        other = open_audit(config.reference)
        reference = Reference(other.scores, other.holdout_scores)
    share = config.screen_share if config.cascade else None
    return audit, analyse(audit.scores, audit.holdout_scores, reference, share)
