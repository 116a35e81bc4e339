"""`volgrowth verify`: samples of the model, what they reproduce, and what that says of an audit's flags.

Everything runs through the audit's own engine. Images are drawn and published first, each with a seed of its own, so
that an interrupted verification goes on and a later one with more samples draws only what is new. Then every range
of rows is searched for what is near to any of them, and the neighbours of all ranges are merged. Flagged images are
also noised to several levels and decoded: a memorized image is returned to from levels at which others are forgotten.

On demand the same samples are drawn again by a sampler that takes its last step from a higher noise level
(`volgrowth.theory.inertia`, arXiv 2505.02508): how many fewer of them are copies, and how much further from all images.
"""

from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.calibration.complexity import regressors
from volgrowth.analysis.controls import match_controls
from volgrowth.analysis.distinct import first_rows
from volgrowth.analysis.findings import check_columns
from volgrowth.analysis.proof import NEIGHBOURS, decide_reproduced, hit_groups, samples_needed, summarize_proof
from volgrowth.audit.engine.batch_size import settle_batch
from volgrowth.audit.engine.ledger import Task
from volgrowth.audit.engine.progress import AuditProgress
from volgrowth.audit.engine.running import run_tasks
from volgrowth.audit.engine.session import Session
from volgrowth.audit.output.lock import driving
from volgrowth.audit.output.manifest import HOLDOUT_FOLDER, SCORES_FOLDER, Manifest, Shard
from volgrowth.audit.output.result import FINDINGS_FILE, SUMMARY_FILE, Audit, open_audit
from volgrowth.audit.sampling.drawing import (
    DECODED,
    SAMPLE,
    SAMPLER,
    STOPPED,
    Drawing,
    DrawingWorker,
    Start,
    drawings,
    is_drawn,
)
from volgrowth.audit.sampling.neighbours import Neighbours, SearchingWorker
from volgrowth.commands.report import SAMPLES_FILE, write_report
from volgrowth.config import AuditConfig
from volgrowth.errors import UsageError
from volgrowth.records import RETURNS, SAMPLES, Status

RETURNS_FILE = "verification/returns.parquet"

# flagged images that are noised and decoded, the highest first, as many controls beside them
TARGETS = 40
LEVELS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
DRAWS = 4

# rows that one call searches: enough to be worth a call, few enough to be repeated when a worker dies
RANGE = 65_536


@dataclass(frozen=True)
class Targets:
    """Flagged images and the controls matched to them: rows, of equal length."""

    flagged: np.ndarray
    controls: np.ndarray

    def starts(self, conditional: bool) -> list[Start]:
        """What is to be decoded, in the order that `_returns` takes them: images, levels, draws."""
        rows = [*self.flagged.tolist(), *self.controls.tolist()]
        return [
            Start(draw, row, level, row if conditional else None)
            for row in rows
            for level in LEVELS
            for draw in range(DRAWS)
        ]


def verify_audit(
    output: str,
    samples: int,
    *,
    stop_level: float | None = None,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    ray_address: str | None = None,
    engine: str = "ray",
    quiet: bool = False,
) -> Audit:
    """Verify a finished audit by so many samples; fills `verified_hits`, the summary's `verification`, the report.

    Args:
        stop_level: draw them again by a sampler that stops at this noise level, and compare.

    Raises:
        UsageError: no samples asked for; a level that is not above 0.
        OutputError: an older version wrote the findings.
        VolgrowthError: as `run_audit`; what was drawn stays, and the same call goes on.
    """
    if samples < 1:
        raise UsageError(f"--samples {samples}: expected at least 1; {samples_needed():,} say something")
    if stop_level is not None and not stop_level > 0:
        raise UsageError(f"--stop-level {stop_level:g}: expected a noise level above 0, such as 0.1")
    audit = open_audit(output)
    check_columns(audit.findings, output, "identical")
    running = {"workers": workers, "gpus_per_worker": gpus_per_worker, "ray_address": ray_address, "engine": engine}
    config = AuditConfig.build(**audit.manifest["config"], output=output, **running)
    targets = choose_targets(audit)
    conditional = config.condition_column is not None
    starts = _sample_starts(audit, samples, conditional)
    asked = drawings(SAMPLE, starts) + drawings(DECODED, targets.starts(conditional))
    if stop_level is not None:
        asked += drawings(f"{STOPPED}-{stop_level:g}", [replace(start, stop=stop_level) for start in starts])
    with driving(audit.store) as lock, Session(config, audit.frozen, audit.store, lock) as session:
        settle_batch(session)
        _draw(session, audit, asked, quiet)
        groups = _groups(audit)
        found = _search(session, audit, asked, groups, quiet)
        _write(audit, targets, samples, groups, found, stop_level)
    verified = open_audit(output)
    write_report(verified)
    return verified


def _sample_starts(audit: Audit, samples: int, conditional: bool) -> list[Start]:
    """Numbered samples; of a conditional audit each under the condition of a random scored row, as in training."""
    if not conditional:
        return [Start(number) for number in range(samples)]
    scores, seed = audit.scores, audit.frozen.config["seed"]
    rows = scores.filter(pc.equal(scores["status"], Status.OK.value))["row"].to_numpy()
    # each by its own number, so that more samples can be drawn later
    chosen = [np.random.default_rng([seed, number]).integers(len(rows)) for number in range(samples)]
    return [Start(number, condition_row=int(rows[index])) for number, index in enumerate(chosen)]


def choose_targets(audit: Audit) -> Targets:
    """The flagged images of highest excess, one row each, and unflagged ones of the same complexity.

    Near duplicates of flagged images are no controls: what returns to one may hit the other.
    """
    findings = audit.findings
    scored = findings["excess_growth"].is_valid().to_numpy() & first_rows(findings)
    flagged = pc.fill_null(findings["memorized"], False).to_numpy().astype(bool)
    rows = np.flatnonzero(scored & flagged)
    rows = rows[np.argsort(-findings["excess_growth"].to_numpy()[rows], kind="stable")][:TARGETS]
    cluster = findings["cluster"].to_numpy()
    allowed = np.flatnonzero(scored & ~np.isin(cluster, cluster[flagged]))
    partners = match_controls(regressors(audit.scores), rows, allowed)
    return Targets(rows[partners >= 0], partners[partners >= 0])


def _draw(session: Session, audit: Audit, asked: list[Drawing], quiet: bool) -> None:
    """Draw what no file holds yet."""
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


def _search(
    session: Session, audit: Audit, asked: list[Drawing], groups: dict[str, np.ndarray], quiet: bool
) -> Neighbours:
    """The nearest groups of every drawn image, among all audited and held-out ones."""
    ranges = _ranges(audit.frozen)
    count = sum(len(np.unique(numbers[numbers >= 0])) for numbers in groups.values())
    k, names = min(NEIGHBOURS, max(count, 1)), [drawing.name for drawing in asked]
    found = Neighbours(np.empty((sum(len(drawing.starts) for drawing in asked), 0)), k)
    rows = sum(part.rows for part in ranges)
    progress = AuditProgress(rows, len(ranges), quiet=quiet, doing="comparing", unit="images")

    def task(part: Shard) -> Task:
        def finished(answer: tuple[np.ndarray, np.ndarray]) -> tuple[()]:
            found.merge(*answer)
            progress.advance(part.rows, 0)
            return ()

        mine = groups[part.folder][part.start : part.stop]
        name = f"the search in rows {part.start} to {part.stop - 1} of {part.folder}"
        return Task(name, "nearest", (names, part, mine, k), finished)

    run_tasks(session, SearchingWorker, map(task, ranges), len(ranges), progress)
    return found


def _groups(audit: Audit) -> dict[str, np.ndarray]:
    """The group of each row of both sets, -1 for rows without an image and for copies of a row before.

    Audited rows have the number `identical`, held-out ones come after all of those. Held-out images that are
    audited as well are left out: they can be memorized.
    """
    audited = audit.scores["content_hash"]
    groups = {SCORES_FOLDER: _first_of_each(audited, audit.findings["identical"].to_numpy(), pa.array([], pa.uint64()))}
    if audit.holdout_scores is not None and audit.holdout_findings is not None:
        numbers = audit.holdout_findings["identical"].to_numpy() + audit.frozen.data.rows
        groups[HOLDOUT_FOLDER] = _first_of_each(audit.holdout_scores["content_hash"], numbers, audited)
    return groups


def _first_of_each(hashes: pa.ChunkedArray, numbers: np.ndarray, left_out: pa.Array | pa.ChunkedArray) -> np.ndarray:
    wanted = pc.and_(hashes.is_valid(), pc.invert(pc.is_in(hashes, value_set=pc.drop_null(left_out))))
    rows = np.flatnonzero(wanted.to_numpy())
    _, first = np.unique(hashes.to_numpy()[rows].astype(np.uint64), return_index=True)
    result = np.full(len(numbers), -1)
    result[rows[first]] = numbers[rows[first]]
    return result


def _ranges(plan: Manifest) -> list[Shard]:
    folders = [(SCORES_FOLDER, plan.data.rows), *([(HOLDOUT_FOLDER, plan.holdout.rows)] if plan.holdout else [])]
    ranges = []
    for folder, rows in folders:
        size = min(RANGE, max(1024, ceil(rows / 16)))
        ranges += [Shard(folder, i, start, min(start + size, rows)) for i, start in enumerate(range(0, rows, size))]
    return ranges


def _write(
    audit: Audit,
    targets: Targets,
    samples: int,
    groups: dict[str, np.ndarray],
    found: Neighbours,
    stop_level: float | None,
) -> None:
    """The tables of samples and returns, `verified_hits` of every row, and the summary."""
    hit, rows = hit_groups(np.sqrt(found.squared), found.group), audit.frozen.data.rows
    counts = np.bincount(hit[:samples][hit[:samples] >= 0], minlength=rows + len(groups.get(HOLDOUT_FOLDER, ())))
    train, held = (np.unique(numbers[numbers >= 0]) for numbers in (groups[SCORES_FOLDER], _held(groups)))
    reproduced = decide_reproduced(counts[train], counts[held], samples)
    footer = {"schema_version": str(audit.frozen.schema_version), "plan_digest": audit.frozen.digest}
    audit.store.write_table(SAMPLES_FILE, _samples(found, hit, samples, rows), footer)
    stopped = len(hit) if stop_level is None else len(hit) - samples
    returns = _returns(audit, targets, hit[samples:stopped])
    audit.store.write_table(RETURNS_FILE, returns, footer)
    identical = audit.findings["identical"].to_numpy()
    hits = pa.array(counts[identical].astype(np.int32), mask=audit.scores["content_hash"].is_null().to_numpy())
    column = audit.findings.schema.get_field_index("verified_hits")
    findings = audit.findings.set_column(column, audit.findings.field("verified_hits"), hits)
    metadata = {"schema_version": footer["schema_version"], "config_digest": audit.frozen.config_digest}
    audit.store.write_table(FINDINGS_FILE, findings, metadata)
    verification = summarize_proof(findings, train[reproduced.images], reproduced, samples)
    verification |= {"sampler": SAMPLER, "returns": _shares(returns), "stopped": None}
    if stop_level is not None:
        usual, early = _copies(found, hit, 0, samples), _copies(found, hit, stopped, stopped + samples)
        verification["stopped"] = {"level": stop_level, "usual": usual, "early": early}
    audit.store.write_json(SUMMARY_FILE, {**audit.summary, "verification": verification})


def _copies(found: Neighbours, hit: np.ndarray, start: int, stop: int) -> dict[str, float]:
    """Of some samples: how many are copies, and how far they are from the nearest image that they are no copy of.

    The distance is a mean, for pixels in [-1, 1]: how far a sampler has left what images look like.
    """
    copies, distance = hit[start:stop] >= 0, np.sqrt(found.squared[start:stop])
    other = distance[np.arange(len(copies)), np.minimum(copies.astype(int), distance.shape[1] - 1)] / 127.5
    return {"copies": int(copies.sum()), "distance": float(other[np.isfinite(other)].mean())}


def _held(groups: dict[str, np.ndarray]) -> np.ndarray:
    return groups.get(HOLDOUT_FOLDER, np.empty(0, int))


def _samples(found: Neighbours, hit: np.ndarray, samples: int, rows: int) -> pa.Table:
    """One row a sample: its nearest image, audited or held out, and whether it is a hit."""
    distance, nearest = np.sqrt(found.squared[:samples]), found.group[:samples, 0]
    held, none = nearest >= rows, nearest < 0
    finite = np.where(np.isfinite(distance), distance, np.nan)
    columns = {
        "number": pa.array(np.arange(samples)),
        "nearest_row": pa.array(nearest, pa.int64(), mask=held | none),
        "nearest_holdout_row": pa.array(nearest - rows, pa.int64(), mask=~held),
        "distance": pa.array(distance[:, 0] / 127.5, pa.float64(), mask=none),
        "ratio": pa.array(distance[:, 0] / np.maximum(np.nanmean(finite, 1), 1e-12), pa.float64(), mask=none),
        "hit": pa.array(hit[:samples] >= 0),
    }
    return pa.table(columns, schema=SAMPLES)


def _returns(audit: Audit, targets: Targets, hit: np.ndarray) -> pa.Table:
    """One row for each image and level: how many of its decoded versions hit it."""
    rows = np.concatenate([targets.flagged, targets.controls])
    identical = audit.findings["identical"].to_numpy()[rows]
    back = hit.reshape(len(rows), len(LEVELS), DRAWS) == identical[:, None, None]
    partner = np.concatenate([targets.controls, targets.flagged])
    columns = {
        "row": np.repeat(rows, len(LEVELS)),
        "flagged": np.repeat(np.arange(len(rows)) < len(targets.flagged), len(LEVELS)),
        "matched_row": np.repeat(partner, len(LEVELS)),
        "noise_level": np.tile(LEVELS, len(rows)),
        "draws": np.full(back.shape[0] * len(LEVELS), DRAWS),
        "returned": back.sum(2).ravel(),
    }
    return pa.table({name: pa.array(column) for name, column in columns.items()}).cast(RETURNS)


def _shares(returns: pa.Table) -> dict[str, Any] | None:
    """Share of returns by level, of flagged images and of their controls; None where nothing was flagged."""
    if not len(returns):
        return None
    flagged = returns["flagged"].to_numpy()
    returned = returns["returned"].to_numpy() / DRAWS

    def share(which: np.ndarray) -> list[float]:
        return returned[which].reshape(-1, len(LEVELS)).mean(0).tolist()

    images = int(flagged.sum()) // len(LEVELS)
    return {
        "images": images,
        "draws": DRAWS,
        "levels": list(LEVELS),
        "flagged": share(flagged),
        "controls": share(~flagged),
    }
