"""`volgrowth verify`: draw samples from the audited model, and see which training images they reproduce.

Everything runs on the audit's own engine, in four stages:

1. choose: number the samples, and choose flagged images and controls that are noised and decoded again
2. draw: every image has a seed of its own and is published, so that an interrupted verification goes on, and a later
   one with more samples draws only what is new
3. search: each range of rows is searched for the images nearest to what was drawn, and the answers are merged
4. write: the tables of samples and returns, the column `verified_hits`, the summary and the report

With `rates` the rate at which the model makes each flagged or proven image is measured too, with `rates_of` also that
of images asked for (`verify_rates`).

With `distance="perceptual"` samples are compared with what images look like apart from light and detail
(`audit.sampling.hits`).

With `stop_level` the same samples are drawn again by a sampler that takes its last step from that noise level
(`volgrowth.theory.inertia`, arXiv 2505.02508), to see how many fewer of them are copies, and how much further they are
from all images.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.caveats import with_caveats
from volgrowth.analysis.findings import check_columns
from volgrowth.analysis.judging import JudgedAudit
from volgrowth.analysis.verification.generated import summarize_rates, with_rates
from volgrowth.analysis.verification.proof import PictureHits, decide_reproduced, samples_needed, summarize_proof
from volgrowth.analysis.verification.returns import (
    DRAWS,
    LEVELS,
    ReturnTargets,
    choose_targets,
    return_shares,
    returns_table,
)
from volgrowth.analysis.verification.samples import ImageNumbers, count_copies, samples_table, search_groups
from volgrowth.audit.engine.batch_size import settle_batch
from volgrowth.audit.engine.ledger import Task
from volgrowth.audit.engine.progress import AuditProgress
from volgrowth.audit.engine.running import run_tasks
from volgrowth.audit.engine.session import Session
from volgrowth.audit.output.lock import driving
from volgrowth.audit.output.manifest import HOLDOUT_FOLDER, SCORES_FOLDER
from volgrowth.audit.output.result import FINDINGS_FILE, SUMMARY_FILE, Audit, open_audit, open_stored
from volgrowth.audit.output.unchanged import check_unchanged
from volgrowth.audit.sampling.drawing import SAMPLER, Drawing, DrawingWorker, Start, drawings, is_drawn
from volgrowth.audit.sampling.hits import DISTANCES, NEIGHBOURS, hit_groups
from volgrowth.audit.sampling.neighbours import Neighbours
from volgrowth.audit.sampling.sample_files import DECODED, SAMPLE, STOPPED
from volgrowth.commands.report import SAMPLES_FILE, write_report
from volgrowth.commands.searching import search_all
from volgrowth.commands.verify_rates import asked_rows, measure_rates
from volgrowth.config import EXECUTION, AuditConfig
from volgrowth.errors import UsageError
from volgrowth.records import FINDINGS, Status
from volgrowth.storage.store import Store

RETURNS_FILE = "verification/returns.parquet"


def verify_audit(
    output: str,
    samples: int,
    *,
    stop_level: float | None = None,
    rates: bool = False,
    rates_of: Collection[str] | None = None,
    distance: str = "pixels",
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    ray_address: str | None = None,
    engine: str = "ray",
    quiet: bool = False,
    trust_output: bool = False,
) -> Audit:
    """Draw samples from the audited model, and record which training images they reproduce.

    Fills the column `verified_hits` of the findings and `verification` in the summary, and writes the report again.
    Samples that an earlier call drew are kept.

    Args:
        output: folder or URL of a finished audit.
        samples: number of images to draw; 2500 or more see most of what a model reproduces.
        stop_level: noise level from which a second sampler takes its last step, for comparison; None for no comparison.
        rates: measure how often the model makes each flagged or proven image, by thousands of network evaluations for
            each: columns `rate`, `rate_low` and `rate_high` of the findings.
        rates_of: ids of further images whose rates are measured, with those that `rates` measures; None for no others.
        distance: between which a sample counts as a copy: `pixels`, or `perceptual`, which also finds copies that were
            recoloured, resized or cropped by a little, and confuses images that differ only in light, tint or detail.
            Held-out images are compared in the same way. Rates are measured with `pixels` alone.
        workers: most model replicas; by default one per GPU, or per core.
        gpus_per_worker: GPUs per worker.
        ray_address: Ray cluster to join; by default a local one is started.
        engine: `ray`, or `local` for one worker in this process.
        quiet: show no progress.
        trust_output: use the model, which may be code, and the data sets that the output names although another
            account, or another machine, made the audit.

    Returns:
        The audit, with new findings and summary.

    Raises:
        UsageError: `samples` is below 1, `stop_level` is not above 0, `distance` is not known or rates are asked for
            with another one than `pixels`, or `rates_of` has no id, one that is not in the audit, or one whose image
            could not be scored.
        OutputError: there is no finished audit, an older version wrote its findings, or another account made it and
            `trust_output` is not given.
        VolgrowthError: model, data or engine failed; what was drawn stays, and the same call goes on.
    """
    _refuse(samples, stop_level, rates, rates_of, distance)
    running = {"workers": workers, "gpus_per_worker": gpus_per_worker, "ray_address": ray_address, "engine": engine}
    # refused before the output is locked
    open_audit(output, trust_output=trust_output).refuse_if_strange("drawing samples")
    with driving(Store(output)) as lock:
        audit = open_stored(lock.fenced(), trust_output)
        audit.refuse_if_strange("drawing samples")
        check_columns(audit.store.read_schema(FINDINGS_FILE), output, "identical")
        # samples do not depend on what was measured, and older versions knew other measures
        known = {name: value for name, value in audit.frozen.config.items() if name not in {*EXECUTION, "measure"}}
        config = AuditConfig.build(**known, output=output, **running)
        check_unchanged(audit.store, audit.frozen)
        asked = asked_rows(audit, frozenset(rates_of or ()))
        chosen = _choose(audit, samples, stop_level, conditional=config.condition_column is not None)
        with Session(config, audit.frozen, audit.store, lock) as session:
            settle_batch(session)
            _draw(session, audit, chosen.drawings, quiet)
            groups = _groups(audit)
            found = _search(session, audit, chosen.drawings, groups, distance, quiet)
            _write(audit, chosen, groups, found, distance)
            if rates or asked:
                audit = open_stored(audit.store, trust_output)
                measured = measure_rates(session, audit, groups, asked, quiet)
                _write_rates(audit, *measured, conditional=config.condition_column is not None)
        write_report(open_stored(lock.fenced(), trust_output))
    return open_audit(output, trust_output=trust_output)


def _refuse(
    samples: int, stop_level: float | None, rates: bool, rates_of: Collection[str] | None, distance: str
) -> None:
    """Raise UsageError for what can be told to be wrong before anything is opened."""
    if samples < 1:
        raise UsageError(f"--samples {samples}: expected at least 1; {samples_needed():,} say something")
    if stop_level is not None and not stop_level > 0:
        raise UsageError(f"--stop-level {stop_level:g}: expected a noise level above 0, such as 0.1")
    if rates_of is not None and not rates_of:
        raise UsageError("--rates-of names no image: expected one id a line, or --rates alone")
    if distance not in DISTANCES:
        raise UsageError(f"--distance {distance}: expected one of {', '.join(DISTANCES)}")
    if distance != "pixels" and (rates or rates_of is not None):
        raise UsageError(
            f"--rates with --distance {distance}: rates count copies by distances in pixels; measure them in a call "
            f"without --distance"
        )


@dataclass(frozen=True)
class _Chosen:
    """The images to draw: first `samples` samples, then the decoded versions of `targets`, then stopped samples."""

    samples: int
    stop_level: float | None
    targets: ReturnTargets
    drawings: list[Drawing]


def _choose(audit: Audit, samples: int, stop_level: float | None, conditional: bool) -> _Chosen:
    """Choose the images to draw."""
    targets = choose_targets(JudgedAudit(audit, None), audit.frozen.data.rows)
    starts = _sample_starts(audit, samples, conditional)
    decoded = [
        Start(draw, row, level, row if conditional else None)
        for row in targets.rows.tolist()
        for level in LEVELS
        for draw in range(DRAWS)
    ]
    asked = drawings(SAMPLE, starts) + drawings(DECODED, decoded)
    if stop_level is not None:
        asked += drawings(f"{STOPPED}-{stop_level:g}", [replace(start, stop=stop_level) for start in starts])
    return _Chosen(samples, stop_level, targets, asked)


def _sample_starts(audit: Audit, samples: int, conditional: bool) -> list[Start]:
    """Number the samples; in a conditional audit each gets the condition of a random scored row, as in training."""
    if not conditional:
        return [Start(number) for number in range(samples)]
    seed = audit.frozen.config["seed"]
    scored = sum(pc.sum(pc.equal(part["status"], Status.OK.value)).as_py() or 0 for part in _statuses(audit))
    # each by its own number, so that more samples can be drawn later
    chosen = np.array([np.random.default_rng([seed, number]).integers(scored) for number in range(samples)])
    rows, before = np.empty(samples, np.int64), 0
    for part in _statuses(audit):
        there = part["row"].filter(pc.equal(part["status"], Status.OK.value)).to_numpy()
        mine = (chosen >= before) & (chosen < before + len(there))
        rows[mine] = there[chosen[mine] - before]
        before += len(there)
    return [Start(number, condition_row=row) for number, row in enumerate(rows.tolist())]


def _statuses(audit: Audit) -> Iterator[pa.Table]:
    return audit.parts(scores=["status"])


def _draw(session: Session, audit: Audit, asked: list[Drawing], quiet: bool) -> None:
    """Draw the images that no published file holds yet."""
    todo = [drawing for drawing in asked if not is_drawn(audit.store, audit.frozen, drawing)]
    total, left = (sum(len(drawing.starts) for drawing in some) for some in (asked, todo))
    done = len(asked) - len(todo)
    progress = AuditProgress(total, len(asked), total - left, done, quiet=quiet, doing="sampling", unit="samples")

    def task(drawing: Drawing) -> Task:
        def finished(drawn: int) -> tuple[()]:
            progress.advance(drawn, 0)
            return ()

        return Task(drawing.name, "draw", (drawing,), finished)

    run_tasks(session, DrawingWorker, map(task, todo), len(todo), progress)


def _groups(audit: Audit) -> dict[str, ImageNumbers]:
    """Return the numbers of the audited and of the held-out images, by the folder of their scores."""
    columns: dict[str, Any] = {"findings": ["identical"], "scores": ["content_hash"]}
    held = pa.concat_tables(audit.parts(**columns, held_out=True)) if audit.frozen.holdout else None
    audited, held_out = search_groups(audit.parts(**columns), audit.frozen.data.rows, held)
    return {SCORES_FOLDER: audited, HOLDOUT_FOLDER: held_out}


def _search(
    session: Session,
    audit: Audit,
    asked: list[Drawing],
    groups: dict[str, ImageNumbers],
    distance: str,
    quiet: bool,
) -> Neighbours:
    """Find the groups nearest to every drawn image, among all audited and held-out ones."""
    names, count = [drawing.name for drawing in asked], sum(len(drawing.starts) for drawing in asked)
    method = {"pixels": "nearest", "perceptual": "nearest_in_look"}[distance]
    return search_all(session, audit.frozen, (method, names, count), groups, NEIGHBOURS, "comparing", quiet)


def _write(audit: Audit, chosen: _Chosen, groups: dict[str, ImageNumbers], found: Neighbours, compared: str) -> None:
    """Write the tables of samples and returns, `verified_hits` of every row, and the summary."""
    store, manifest, samples = audit.store, audit.frozen, chosen.samples
    rows, distance = manifest.data.rows, np.sqrt(found.squared)
    hit = hit_groups(distance, found.group)
    number, count = np.unique(hit[:samples][hit[:samples] >= 0], return_counts=True)
    train, held = number < rows, np.zeros(groups[HOLDOUT_FOLDER].count, np.int64)
    held[: (~train).sum()] = count[~train]
    reproduced = decide_reproduced(count[train], held, samples, groups[SCORES_FOLDER].count)
    # the stopped samples, as many as samples, come last
    end = len(hit) if chosen.stop_level is None else len(hit) - samples
    returns = returns_table(chosen.targets, hit[samples:end])
    table = samples_table(distance[:samples], found.group[:samples, 0], hit[:samples], rows)
    footer = {"schema_version": str(manifest.schema_version), "plan_digest": manifest.digest}
    store.write_table(SAMPLES_FILE, table, footer)
    store.write_table(RETURNS_FILE, returns, footer)
    hits = PictureHits(number[train], count[train], number[train][reproduced.images])
    _write_findings(audit, hits.add_to, ["content_hash"])
    judged = JudgedAudit(audit, {"rows": hits.proven})
    verification = summarize_proof(judged, hits.most, reproduced, samples)
    verification |= {"distance": compared, "rule": verification["rule"] + DISTANCES[compared]}
    verification |= {"sampler": SAMPLER, "returns": return_shares(returns), "stopped": None, "rates": None}
    if chosen.stop_level is not None:
        usual, early = count_copies(distance[:samples], hit[:samples]), count_copies(distance[end:], hit[end:])
        verification["stopped"] = {"level": chosen.stop_level, "usual": usual, "early": early}
    summary = {**audit.summary, "verification": verification, "verification_outdated": False}
    store.write_json(SUMMARY_FILE, with_caveats(summary))


def _write_rates(audit: Audit, rates: pa.Table, asked: int, conditional: bool) -> None:
    """Write the rates of images beside their findings and into the summary."""
    summary = audit.summary
    _write_findings(audit, lambda part: with_rates(part, rates))
    proof = summary["verification"]
    proof["rates"] = summarize_rates(JudgedAudit(audit, proof), rates, asked, proof["samples"], conditional)
    audit.store.write_json(SUMMARY_FILE, with_caveats(summary))


def _write_findings(audit: Audit, change: Callable[[pa.Table], pa.Table], beside: Sequence[str] = ()) -> None:
    """Write the findings again, the rows of a shard at a time, as `change` makes them.

    They are published when all of them are read: an older file that is damaged stays.

    Args:
        audit: the audit.
        change: makes new findings from those of some rows, which have further columns.
        beside: columns of the scores that `change` needs.
    """
    manifest = audit.frozen
    metadata = {"schema_version": str(manifest.schema_version), "config_digest": manifest.config_digest}
    with audit.store.table_writer(FINDINGS_FILE, FINDINGS, metadata) as writer:
        for part in audit.parts(findings=FINDINGS.names, scores=beside):
            writer.write(change(part).select(FINDINGS.names))
