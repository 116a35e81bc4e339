"""`volgrowth audit`: measure every image of a data set under a model, in four stages.

1. freeze: write down settings, model and data set in the manifest, or check them against the manifest that is there
2. score: have workers measure every row that has no score yet
3. analyse: calibrate the scores, and flag images
4. write: findings, summary and report, and last of all the marker that the audit is done

The last three are in `volgrowth.commands.measuring`, which loads torch. A finished audit that is asked for again needs
only the first.
"""

from math import prod
from typing import Any

from volgrowth.analysis.calibration.expected_scores import MIN_IMAGES
from volgrowth.audit.output.checking import clear_bad_files, verify_files
from volgrowth.audit.output.fragments import published
from volgrowth.audit.output.freezing import FrozenAudit, freeze
from volgrowth.audit.output.lock import driving
from volgrowth.audit.output.manifest import HOLDOUT_FOLDER, MANIFEST, SCORES_FOLDER, SUCCESS, DataInfo, Manifest, Shard
from volgrowth.audit.output.result import REPORT_FILE, Audit, open_audit
from volgrowth.audit.output.unchanged import check_unchanged
from volgrowth.config import AuditConfig, PaperMeasure
from volgrowth.errors import DataError, UsageError
from volgrowth.models.locating import files_digest
from volgrowth.plain import print_plain
from volgrowth.records import ModelInfo
from volgrowth.report.words import cascade_sentences, failure_sentences, headline_lines
from volgrowth.sources import open_source
from volgrowth.sources.embeddings import check_embedding_column
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
    store = Store(config.output)
    inputs = inspect_inputs(config, _recorded_model(store))
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
        # loads torch, which a finished audit does without
        from volgrowth.commands.measuring import measure_rows

        measure_rows(config, manifest, store, lock, failed, quiet)
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
    return _failed_shares(audit)["audited"]


def _failed_shares(audit: Audit) -> dict[str, float]:
    """Return the shares of the audited and of the held-out rows that have no score."""
    counts, held_out = audit.summary["counts"], (audit.summary.get("failures") or {}).get("held_out")
    holdout = audit.frozen.holdout
    return {
        "audited": (counts["rows"] - counts["ok"]) / max(counts["rows"], 1),
        "held-out": held_out["rows"] / holdout.rows if held_out and holdout else 0.0,
    }


def _failed_shards(store: Store, manifest: Manifest) -> list[Shard]:
    """Return the published shards that have rows without a score."""
    done = published(store, manifest)
    return [shard for shard in manifest.shards if int(done.get(shard.name, {}).get("failed", 0))]


def _recorded_model(store: Store) -> ModelInfo | None:
    """Return the model that the manifest of an output describes; None for a new output."""
    if not store.exists(MANIFEST):
        return None
    return Manifest.from_json(store.read_json(MANIFEST), f"{store.url}/{MANIFEST}").model


def inspect_inputs(config: AuditConfig, recorded: ModelInfo | None = None) -> FrozenAudit:
    """Describe model and data set as they are now, and check that they fit the settings and each other.

    Only headers, listings and footers are read.

    Args:
        config: the settings.
        recorded: an earlier description of the model, which holds as long as the model's files are the same. So a
            finished audit that is asked for again needs no torch.

    Raises:
        UsageError: settings, model, data set or reference audit do not fit each other.
        DataError: a data set cannot be opened, or the held-out set is too small or the audited one.
        ModelError: the model is not there, or is none that can be audited.
    """
    model = recorded
    if model is None or model.files is None or model.files != files_digest(**config.model_arguments):
        from volgrowth.models.load import inspect_model  # loads torch

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
    if config.embedding_column:
        check_embedding_column(source, config.embedding_column)
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
    finished = open_audit(reference)
    other, allowed = finished.frozen, (finished.summary.get("run") or {}).get("max_failed", 0.01)
    for rows, missing in _failed_shares(finished).items():
        if missing > allowed:
            raise UsageError(
                f"--reference {reference}: {missing:.1%} of its {rows} rows have no score, more than the {allowed:g} "
                f"that its --max-failed allows: run it again with --retry-failed"
            )
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
