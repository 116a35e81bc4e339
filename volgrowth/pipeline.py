"""A whole audit: plan, score, reconcile, analyse, report. What `volgrowth audit` and `run_audit` do."""

import sys
from collections.abc import Iterable
from io import BytesIO
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from volgrowth.analysis.calibration import MIN_IMAGES
from volgrowth.analysis.findings import analyse
from volgrowth.analysis.summary import summarize
from volgrowth.audit.fragments import published, reconcile
from volgrowth.audit.manifest import MANIFEST, SUCCESS, DataInfo, Manifest, freeze
from volgrowth.audit.progress import AuditProgress
from volgrowth.audit.result import (
    FINDINGS_FILE,
    HOLDOUT_FINDINGS_FILE,
    REPORT_FILE,
    SUMMARY_FILE,
    Audit,
    open_audit,
)
from volgrowth.audit.store import Store
from volgrowth.config import AuditConfig, PaperMeasure
from volgrowth.errors import DataError, UsageError
from volgrowth.models import inspect_model
from volgrowth.records import ModelInfo
from volgrowth.report import render
from volgrowth.sources import BadImage, decode, open_source

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
    run = _score(config, store, manifest, quiet)
    audit = Audit(store, store.read_json(MANIFEST))
    analysis = analyse(audit.scores, audit.holdout_scores)
    metadata = {"schema_version": str(manifest.schema_version), "config_digest": manifest.config_digest}
    store.write_table(FINDINGS_FILE, analysis.findings, metadata)
    if analysis.holdout is not None:
        store.write_table(HOLDOUT_FINDINGS_FILE, analysis.holdout, metadata)
    store.write_json(SUMMARY_FILE, summarize(audit, analysis, config, run))
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
    return Manifest.plan(config, model, data, holdout)


def _check_tangents(config: AuditConfig, model: ModelInfo) -> None:
    dimension, measure = prod(model.image_shape), config.measure
    if isinstance(measure, PaperMeasure) and measure.num_tangents > dimension:
        raise UsageError(
            f"setting measure.num_tangents: {measure.num_tangents} axes in {dimension} dimensions: expected "
            f"at most as many"
        )


def failed_share(audit: Audit) -> float:
    """Share of the audited rows that have no score."""
    counts = audit.summary["counts"]
    return (counts["rows"] - counts["ok"]) / max(counts["rows"], 1)


def write_report(audit: Audit) -> None:
    """Write report.html from an analysed audit's tables, with the pictures of its most suspicious images.

    Where the data set is no longer there, the page has no pictures, and a line on stderr says so.
    """
    try:
        pictures = _thumbnails(audit, _gallery_rows(audit.findings))
    except DataError as error:
        print(f"the report shows no pictures: {error}", file=sys.stderr)
        pictures = {}
    page = render(audit.summary, audit.scores, audit.findings, pictures, audit.holdout_findings)
    audit.store.write(REPORT_FILE, page.encode())


def _score(config: AuditConfig, store: Store, manifest: Manifest, quiet: bool) -> dict[str, Any]:
    """Score what no fragment covers yet; what all of it took, for the summary."""
    from volgrowth.audit.driver import score_shards

    done = published(store, manifest)
    todo = [shard for shard in manifest.shards if shard.name not in done]
    total = sum(shard.rows for shard in manifest.shards)
    if todo:
        progress = AuditProgress(
            rows=total,
            shards=len(manifest.shards),
            done_rows=total - sum(shard.rows for shard in todo),
            done_shards=len(manifest.shards) - len(todo),
            quiet=quiet,
        )
        with progress:
            score_shards(config, manifest, todo, progress)
    effort = reconcile(store, manifest)
    seconds = effort.worker_seconds / max(effort.workers, 1)
    return {
        "seconds": seconds,
        "worker_seconds": effort.worker_seconds,
        "images_per_second": total / seconds if seconds else 0.0,
        "workers": effort.workers,
        "device": effort.device,
    }


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
        buffer = BytesIO()
        Image.fromarray(pixels[0] if channels == 1 else pixels.transpose(1, 2, 0)).save(buffer, "PNG")
        pictures[row] = buffer.getvalue()
    return pictures
