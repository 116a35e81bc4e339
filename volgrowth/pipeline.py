"""A whole audit: plan, score, reconcile, analyse, report. What `volgrowth audit` and `run_audit` do."""

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.calibration import MIN_IMAGES
from volgrowth.analysis.findings import Analysis, Reference, analyse
from volgrowth.analysis.summary import summarize
from volgrowth.audit.fragments import published, reconcile
from volgrowth.audit.manifest import (
    HOLDOUT_FOLDER,
    MANIFEST,
    SCORES_FOLDER,
    SUCCESS,
    DataInfo,
    Manifest,
    Shard,
    freeze,
)
from volgrowth.audit.progress import AuditProgress
from volgrowth.audit.refine import FACTOR, Refinement, near
from volgrowth.audit.result import (
    FINDINGS_FILE,
    HOLDOUT_FINDINGS_FILE,
    REPORT_FILE,
    SUMMARY_FILE,
    Audit,
    open_audit,
)
from volgrowth.audit.store import Store
from volgrowth.config import AuditConfig, PaperMeasure, StandardMeasure
from volgrowth.errors import DataError, UsageError
from volgrowth.models import inspect_model
from volgrowth.records import ModelInfo
from volgrowth.report import render
from volgrowth.sources import BadImage, decode, encode_png, open_source

GALLERY = 60


def run_audit(config: AuditConfig, *, quiet: bool = False) -> Audit:
    """Audit a data set, or resume the audit that `config.output` holds.

    Raises:
        VolgrowthError: model, data, output or engine, in one sentence; what was published stays.
        KeyboardInterrupt: as it comes; what was published stays, and the same call resumes.
    """
    store = Store(config.output)
    manifest = freeze(store, plan(config))
    if store.exists(SUCCESS):
        return open_audit(config.output)
    from volgrowth.audit.driver import ray_running, score_shards

    with ExitStack() as engine:

        def score(todo: list[Shard], refinement: Refinement | None = None) -> None:
            if todo:
                engine.enter_context(ray_running(config.ray_address))
                with _progress(manifest, todo, refinement, quiet) as progress:
                    score_shards(config, manifest, todo, progress, refinement)

        done = published(store, manifest)
        score([shard for shard in manifest.shards if shard.name not in done])
        audit, analysis = _analysed(config, store)
        if config.adaptive:
            refinement = Refinement.load(store)
            if refinement is None:
                refinement = _choose(config, audit, analysis)
                refinement.save(store)
            done = published(store, manifest)
            score([s for s in refinement.shards(manifest) if "refined" not in done[s.name]], refinement)
            audit, analysis = _analysed(config, store)
    metadata = {"schema_version": str(manifest.schema_version), "config_digest": manifest.config_digest}
    store.write_table(FINDINGS_FILE, analysis.findings, metadata)
    if analysis.holdout is not None:
        store.write_table(HOLDOUT_FINDINGS_FILE, analysis.holdout, metadata)
    store.write_json(SUMMARY_FILE, summarize(audit, analysis, config, _run(store, manifest)))
    write_report(audit)
    store.write(SUCCESS, b"")
    return open_audit(config.output)


def plan(config: AuditConfig) -> Manifest:
    """The plan of an audit from what model and data are now: headers, listings and footers only."""
    model = inspect_model(config.model, config.revision, config.subfolder)
    source = open_source(config.data, config.split, config.image_column, config.id_column)
    data, holdout = DataInfo.of(config.data, config.split, source), None
    if config.holdout:
        split = config.holdout_split
        holdout = DataInfo.of(config.holdout, split, open_source(config.holdout, split, config.image_column))
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
    return manifest


def _check_tangents(config: AuditConfig, model: ModelInfo) -> None:
    dimension, measure = prod(model.image_shape), config.measure
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


def failed_share(audit: Audit) -> float:
    """Share of the audited rows that have no score."""
    counts = audit.summary["counts"]
    return (counts["rows"] - counts["ok"]) / max(counts["rows"], 1)


def write_report(audit: Audit) -> None:
    """Write report.html from an analysed audit's tables, with the pictures of its most suspicious images.

    Where the data set is no longer there, the page has no pictures, and a line on stderr says so.

    Raises:
        UsageError: the summary or the tables are of an older version and lack what the page shows.
    """
    try:
        pictures = _thumbnails(audit, _gallery_rows(audit.findings))
    except DataError as error:
        print(f"the report shows no pictures: {error}", file=sys.stderr)
        pictures = {}
    try:
        page = render(audit.summary, audit.scores, audit.findings, pictures, audit.holdout_findings)
    except KeyError as error:
        url, version = audit.store.url, audit.summary.get("volgrowth", "of unknown version")
        raise UsageError(
            f"{url} was summarised by volgrowth {version}, which did not write what the report now shows "
            f"({error.args[0]}): to keep the scores, delete {url}/_SUCCESS and run the same `volgrowth audit` again"
        ) from error
    audit.store.write(REPORT_FILE, page.encode())


def _progress(manifest: Manifest, todo: list[Shard], refinement: Refinement | None, quiet: bool) -> AuditProgress:
    """Of the whole audit, or of what is measured again."""
    shards = manifest.shards if refinement is None else todo
    total = sum(shard.rows for shard in shards)
    return AuditProgress(
        rows=total,
        shards=len(shards),
        done_rows=total - sum(shard.rows for shard in todo),
        done_shards=len(shards) - len(todo),
        quiet=quiet,
        doing="auditing" if refinement is None else "refining",
    )


def _analysed(config: AuditConfig, store: Store) -> tuple[Audit, Analysis]:
    audit, reference = Audit(store, store.read_json(MANIFEST)), None
    if config.reference:
        other = open_audit(config.reference)
        reference = Reference(other.scores, other.holdout_scores)
    return audit, analyse(audit.scores, audit.holdout_scores, reference)


def _run(store: Store, manifest: Manifest) -> dict[str, Any]:
    """What scoring took, for the summary; checks that every fragment is there."""
    effort, refinement = reconcile(store, manifest), Refinement.load(store)
    seconds = effort.worker_seconds / max(effort.workers, 1)
    rows = sum(shard.rows for shard in manifest.shards)
    return {
        "seconds": seconds,
        "worker_seconds": effort.worker_seconds,
        "images_per_second": rows / seconds if seconds else 0.0,
        "workers": effort.workers,
        "device": effort.device,
        "refined_rows": sum(len(rows) for rows in refinement.chosen.values()) if refinement else 0,
    }


def _choose(config: AuditConfig, audit: Audit, analysis: Analysis) -> Refinement:
    """Rows of both sets whose excess is near to where flags begin, or would, when none has been raised."""
    measure = config.measure
    assert isinstance(measure, StandardMeasure)  # the config has seen to it
    findings, null = analysis.findings, analysis.findings if analysis.holdout is None else analysis.holdout
    excess = findings["excess_growth"].to_numpy()
    flagged = excess[pc.fill_null(findings["memorized"], False).to_numpy().astype(bool)]
    known = null["excess_growth"].drop_null().to_numpy()
    threshold = flagged.min() if len(flagged) else known.max(initial=-np.inf)
    chosen = {SCORES_FOLDER: near(excess, audit.scores["growth_error"].to_numpy(), threshold)}
    if analysis.holdout is not None and audit.holdout_scores is not None:
        held = analysis.holdout["excess_growth"].to_numpy(), audit.holdout_scores["growth_error"].to_numpy()
        chosen[HOLDOUT_FOLDER] = near(*held, threshold)
    return Refinement(float(threshold), FACTOR * measure.num_probes, chosen)


def _gallery_rows(findings: pa.Table) -> list[int]:
    """The highest row of each distinct image, by excess growth, or by growth where nothing was calibrated."""
    excess = findings.column("excess_growth").to_numpy()
    score = excess if np.isfinite(excess).any() else findings.column("growth").to_numpy()
    ranked = np.argsort(-score, kind="stable")[: np.isfinite(score).sum()]
    _, highest = np.unique(findings.column("cluster").to_numpy()[ranked], return_index=True)
    return ranked[np.sort(highest)][:GALLERY].tolist()


def _thumbnails(audit: Audit, rows: Iterable[int]) -> dict[int, bytes]:
    """PNG of each row as the model saw it."""
    config, data = audit.manifest["config"], audit.plan.data
    source = open_source(data.name, data.split, config["image_column"], config["id_column"])
    if source.fingerprint != data.fingerprint:
        raise DataError(f"data set {data.name} changed since it was audited: its pictures cannot be shown")
    channels, height, width = audit.plan.model.image_shape
    pictures = {}
    for row in rows:
        record = next(iter(source.read(row, row + 1)))
        try:
            pixels = decode(record.data or b"", (channels, height, width), config["max_pixels"])
        except BadImage:
            continue
        pictures[row] = encode_png(pixels)
    return pictures
