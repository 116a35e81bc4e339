"""A whole audit: plan, score, reconcile, analyse, report. What `volgrowth audit` and `run_audit` do."""

from contextlib import suppress
from dataclasses import asdict
from math import prod
from typing import Any

import pyarrow.compute as pc

from volgrowth.analysis.calibration.expected_scores import MIN_IMAGES
from volgrowth.analysis.findings import Analysis, Reference, analyse
from volgrowth.analysis.summary import summarize_audit
from volgrowth.audit.engine.batch_size import BATCH_FILE, settle_batch
from volgrowth.audit.engine.ledger import Task
from volgrowth.audit.engine.progress import AuditProgress
from volgrowth.audit.engine.session import Shift, shift
from volgrowth.audit.engine.shard_tasks import Case, Report
from volgrowth.audit.output.fragments import published, reconcile
from volgrowth.audit.output.freezing import Plan, freeze
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
from volgrowth.audit.output.runs import Tally, effort
from volgrowth.audit.scoring.cascade import STAGES, Chosen, forget
from volgrowth.audit.scoring.refine import Refinement
from volgrowth.audit.scoring.worker import ScoringWorker
from volgrowth.commands.report import write_report
from volgrowth.config import AuditConfig, PaperMeasure
from volgrowth.errors import DataError, OutputError, UsageError
from volgrowth.models import inspect_model
from volgrowth.records import ModelInfo, Status
from volgrowth.report.words import cascade_sentences, title
from volgrowth.sources import open_source
from volgrowth.storage.store import Store

NOISE_FILE = "noise-floor.json"


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
        with shift(config, manifest, store, lock) as work:
            settle_batch(work, store)
            _score(work, store, failed, quiet)
            if config.cascade:
                _cascade(work, store, bool(failed), quiet)
            audit, analysis = _analysed(config, store)
            if config.adaptive:
                _refine(work, audit, analysis, quiet)
                audit, analysis = _analysed(config, store)
        _write(audit, analysis, config)
    return open_audit(config.output)


def _score(work: Shift, store: Store, failed: list[Shard], quiet: bool) -> None:
    """Score the shards that are not there, and again the failed rows of those that are."""
    shards, done = work.manifest.shards, published(store, work.manifest)
    todo = [shard for shard in shards if shard.name not in done]
    rows, left = (sum(shard.rows for shard in some) for some in (shards, todo))
    progress = AuditProgress(rows, len(shards), rows - left, len(shards) - len(todo), quiet=quiet)
    cases = (Case(shard, _report(work, progress)) for shard in todo)
    work.work(ScoringWorker, (case.task() for case in cases), len(todo), progress)
    rows = sum(int(done[shard.name]["failed"]) for shard in failed)
    progress = AuditProgress(rows, len(failed), quiet=quiet, doing="retrying")
    cases = (Case(shard, _report(work, progress), _failed_rows(store, shard)) for shard in failed)
    work.work(ScoringWorker, (case.task() for case in cases), len(failed), progress)


def _cascade(work: Shift, store: Store, again: bool, quiet: bool) -> None:
    """Measure what passes the screen, then a sample of the rest: rows chosen by the first driver that got here."""
    config, manifest = work.config, work.manifest
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
        _again(work, chosen.todo(manifest, published(store, manifest)), "complete", stage, quiet, f"measuring {stage}")


def _refine(work: Shift, audit: Audit, analysis: Analysis, quiet: bool) -> None:
    """Measure rows near the threshold with more probes: those chosen by the first driver that got here."""
    store, manifest = audit.store, work.manifest
    refinement = Refinement.load(store)
    if refinement is None:
        tables = (audit.scores, analysis.findings), (audit.holdout_scores, analysis.holdout)
        refinement = Refinement.choose(work.config, *tables)
        refinement.save(store)
    rows = refinement.todo(manifest, published(store, manifest))
    _again(work, rows, "refine", refinement.num_probes, quiet, "refining")


def _again(work: Shift, rows: dict[Shard, list[int]], method: str, argument: Any, quiet: bool, doing: str) -> None:
    """Have rows of published shards measured by a method of the workers."""
    progress = AuditProgress(sum(map(len, rows.values())), len(rows), quiet=quiet, doing=doing)
    report = _report(work, progress)

    def task(shard: Shard) -> Task:
        arguments = shard, rows[shard], argument
        return Task(f"{shard.name}, {doing}", method, arguments, lambda tally: report(shard, tally))

    work.work(ScoringWorker, map(task, rows), len(rows), progress)


def _report(work: Shift, progress: AuditProgress) -> Report:
    """Who is told of published shards: the display and the record. The first one shows how large the noise floor is."""
    store = Store(work.config.output)
    measured = store.exists(NOISE_FILE)

    def report(shard: Shard, tally: Tally) -> list[Task]:
        nonlocal measured
        progress.advance(tally.images, tally.failed)
        work.run.add(tally)
        work.run.event("shard", shard=shard.name, **asdict(tally))
        if measured or tally.images == tally.failed:
            return []
        measured = True
        return [Task("the noise floor", "noise_floor", (shard,), keep, lambda _: (), attempts=1)]

    def keep(floor: dict[str, Any]) -> tuple[()]:
        work.run.event("self_check", **floor)
        with suppress(OutputError):  # nothing else depends on it
            store.write_json(NOISE_FILE, floor)
        return ()

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
    store, manifest = audit.store, audit.plan
    reconcile(store, manifest)
    metadata = {"schema_version": str(manifest.schema_version), "config_digest": manifest.config_digest}
    store.write_table(FINDINGS_FILE, analysis.findings, metadata)
    if analysis.holdout is not None:
        store.write_table(HOLDOUT_FINDINGS_FILE, analysis.holdout, metadata)
    refinement = Refinement.load(store)
    refined = sum(len(rows) for rows in refinement.chosen.values()) if refinement else 0
    floor = store.read_json(NOISE_FILE) if store.exists(NOISE_FILE) else None
    batch = store.read_json(BATCH_FILE)["batch_size"] if config.batch_size is None else config.batch_size
    run = {**asdict(effort(store)), "refined_rows": refined, "noise_floor": floor, "batch_size": batch}
    sampled = Chosen.load(store, "sampled") if config.cascade else None
    store.write_json(SUMMARY_FILE, summarize_audit(audit, analysis, config, run, sampled.rows if sampled else None))
    write_report(audit)
    store.write(SUCCESS, b"")


def plan(config: AuditConfig) -> Plan:
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
    manifest = Manifest.plan(config, model, data, holdout)
    if config.reference:
        _check_reference(config.reference, manifest)
    return Plan(manifest, listings)


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
    other = open_audit(reference).plan
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
