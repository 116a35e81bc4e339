"""`volgrowth plan`: predict what an audit will take, from a pilot on a few random stretches of its rows.

A stretch is a range of neighbouring rows. The pilot runs on the audit's own engine, with one worker per stretch or as
many as the audit would have, and keeps its notes in a hidden folder of the output. The prediction covers the start of
the workers and the scoring, on machines that stay as they are. For a cascade it assumes that time is proportional to
network evaluations, and that no more audited rows pass the screen than held-out ones do, which is so if few images are
memorized.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from heapq import heapreplace
from itertools import chain, pairwise
from math import ceil
from typing import NamedTuple

import numpy as np
from scipy import stats

from volgrowth.analysis.calibration.error_rates import FDR
from volgrowth.analysis.calibration.reach import CLEAR, Reach, reach
from volgrowth.analysis.calibration.screening import MOST_SAMPLED
from volgrowth.audit.engine.batch_size import lays_out, tune
from volgrowth.audit.engine.ledger import Task
from volgrowth.audit.engine.model_check import check_model_tasks
from volgrowth.audit.engine.progress import AuditProgress
from volgrowth.audit.engine.running import run_tasks
from volgrowth.audit.engine.session import Session
from volgrowth.audit.output.listings import write_listings
from volgrowth.audit.output.lock import driving
from volgrowth.audit.output.manifest import HOLDOUT_FOLDER, SCORES_FOLDER, Manifest, Shard
from volgrowth.audit.scoring.pilot import Piece, PilotWorker
from volgrowth.commands.audit import inspect_inputs, print_opened
from volgrowth.config import SCREEN_EVALUATIONS, AuditConfig
from volgrowth.storage.store import Store

PILOT_FOLDER = ".plan"
FORECAST_FILE = "forecast.json"
PIECES = 8
CONFIDENCE = 0.9
LARGER = (1, 3, 10)
"""Hold-outs, as multiples of the one that is given, for which the plan says what they would show."""
HELD_OUT = (300, 1000, 10_000)
"""The same without any."""


class Range(NamedTuple):
    """A prediction, and the ends of its interval."""

    middle: float
    low: float
    high: float

    def times(self, factor: float) -> "Range":
        """Multiply the prediction and both ends of its interval by `factor`."""
        return Range(*(factor * value for value in self))


@dataclass(frozen=True)
class Forecast:
    """The predicted time, memory and cost of an audit.

    Each `Range` is (middle, low, high): an interval that holds the truth with probability `CONFIDENCE`, given that only
    the choice of rows was random.

    Attributes:
        rows: audited and held-out images.
        workers: model replicas.
        device: what they run on, such as `cpu`.
        batch_size: the smallest micro-batch with nearly the best throughput.
        evaluations: network evaluations of the whole audit.
        images_per_second: speed of one worker while the others work too.
        startup_seconds: time until a worker takes tasks.
        wall_hours: time of the audit, as a Range.
        device_hours: wall time times workers, as a Range.
        money: cost, as a Range in the currency of the price; None without a price.
        peak_memory: bytes per worker: memory of the device on a GPU, else of the process.
        held_out: number of held-out images.
        reach: the fewest memorized images of which any could be flagged, with these held-out images and with more.
    """

    rows: int
    workers: int
    device: str
    batch_size: int
    evaluations: int
    images_per_second: float
    startup_seconds: float
    wall_hours: Range
    device_hours: Range
    money: Range | None
    peak_memory: int
    held_out: int
    reach: tuple[Reach, ...]


def plan_audit(config: AuditConfig, *, price: float | None = None, quiet: bool = False) -> Forecast:
    """Run a pilot on a few random rows, and predict what the audit will take.

    Args:
        config: the settings of the audit.
        price: price per GPU-hour (per worker-hour on CPUs); None for no prediction of the cost.
        quiet: show no progress.

    Returns:
        The prediction: `wall_hours`, `device_hours` and `money`, each as (middle, low, high), `peak_memory` in bytes,
        `batch_size`, `workers` and more.

    Raises:
        VolgrowthError: model, data, output or engine failed; the message is one sentence.
    """
    inputs = inspect_inputs(config)
    if not quiet:
        print_opened(inputs.manifest)
    place = config.model_copy(update={"output": f"{config.output.rstrip('/')}/{PILOT_FOLDER}"})
    store = Store(place.output)
    with driving(store) as lock:
        write_listings(store, inputs.listings)
        with Session(place, inputs.manifest, store, lock) as session:
            batch = _choose_batch(session)
            pieces = _pilot(session, inputs.manifest, batch, quiet)
            startup = session.run.startup_seconds
            workers = config.workers or session.run.room
            device = " and ".join(sorted(session.run.devices))
        forecast = predict(inputs.manifest, config, pieces, batch, workers, device, startup, price)
        store.write_json(FORECAST_FILE, asdict(forecast))
    return forecast


def predict(
    manifest: Manifest,
    config: AuditConfig,
    pieces: list[Piece],
    batch: int,
    workers: int,
    device: str,
    startup: float,
    price: float | None,
) -> Forecast:
    """Predict the whole audit from measured stretches.

    Shards go in turn to the worker that is free first, and each takes the mean time of its rows. The interval is
    Student's for the mean time of a row over random stretches.

    Args:
        manifest: the audit, which gives its shards.
        config: its settings.
        pieces: the measured stretches.
        batch: size of the micro-batches.
        workers: model replicas.
        device: what they run on.
        startup: seconds until a worker takes tasks.
        price: price per GPU-hour (per worker-hour on CPUs); None for no cost.
    """
    shards = manifest.shards
    workers = min(workers, len(shards))
    seconds = np.array([piece.seconds / piece.rows for piece in pieces])
    publishing = float(np.median([piece.publishing for piece in pieces]))

    def wall(per_row: float) -> float:
        busy = [startup] * workers
        for shard in shards:
            heapreplace(busy, busy[0] + shard.rows * per_row * spent[shard.folder] / whole + publishing)
        return max(busy) / 3600

    whole, spent = config.evaluations(manifest.model.has_null), _evaluations(config, manifest)
    low, mean, high = _mean_with_interval(seconds)
    hours = Range(wall(mean), wall(low), wall(high))
    rows = sum(shard.rows for shard in shards)
    return Forecast(
        rows=rows,
        workers=workers,
        device=device,
        batch_size=batch,
        evaluations=round(sum(shard.rows * spent[shard.folder] for shard in shards)),
        images_per_second=float(1 / mean),
        startup_seconds=startup,
        wall_hours=hours,
        device_hours=hours.times(workers),
        money=None if price is None else hours.times(workers * (config.gpus_per_worker or 1) * price),
        peak_memory=max(piece.peak_memory for piece in pieces),
        held_out=manifest.holdout.rows if manifest.holdout else 0,
        reach=_reach(manifest),
    )


def _reach(manifest: Manifest) -> tuple[Reach, ...]:
    """Return how few memorized images could be seen, taking every row for a distinct image."""
    sizes = [factor * manifest.holdout.rows for factor in LARGER] if manifest.holdout else HELD_OUT
    return tuple(reach(manifest.data.rows, held) for held in sizes)


def _evaluations(config: AuditConfig, manifest: Manifest) -> dict[str, float]:
    """Return the network evaluations per image, by the folder of the scores."""
    whole = config.evaluations(manifest.model.has_null)
    if not config.cascade:
        return {SCORES_FOLDER: whole, HOLDOUT_FOLDER: whole}
    share, rest = config.screen_share + MOST_SAMPLED, config.evaluations(manifest.model.has_null, screened=True)
    held_out = whole if config.measure.includes_screen else SCREEN_EVALUATIONS + rest
    return {SCORES_FOLDER: SCREEN_EVALUATIONS + share * rest, HOLDOUT_FOLDER: held_out}


def _mean_with_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return lower end, mean and upper end of Student's interval; the lower end is at least half the smallest value."""
    mean, half = values.mean(), 0.0
    if len(values) > 1:
        half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return max(mean - half, values.min() / 2), mean, mean + half


def describe_forecast(forecast: Forecast) -> str:
    """Return the forecast in words, as `volgrowth plan` prints it."""
    wall, device = (_interval(each, _hours) for each in (forecast.wall_hours, forecast.device_hours))
    lines = [
        f"{forecast.rows:,} images, {forecast.evaluations:,} network evaluations, {forecast.workers} workers on "
        f"{forecast.device}",
        f"wall time     {wall}",
        f"device-hours  {device}",
        f"speed         {forecast.images_per_second:,.3g} images a second and worker, after "
        f"{forecast.startup_seconds:.0f} s to start",
        f"peak memory   {forecast.peak_memory / 2**30:.2f} GiB a worker",
        f"batch size    {forecast.batch_size}: audit with --set batch_size={forecast.batch_size}",
    ]
    if forecast.money is not None:
        lines.insert(3, f"cost          {_interval(forecast.money, lambda amount: f'{amount:,.2f}')}")
    brackets = f"in brackets: {CONFIDENCE:.0%} intervals over which rows the pilot drew"
    return "\n".join([*lines, brackets, *_reach_lines(forecast)])


def _reach_lines(forecast: Forecast) -> list[str]:
    """Say how few memorized images could be flagged, and what more held-out images would buy."""
    lines = [f"to flag any image at a false-discovery rate of {FDR:.0%}, at least so many must be memorized:"]
    if not forecast.held_out:
        lines.insert(0, "without held-out images the error rate will be an assumption: give some with --holdout")
    for each in forecast.reach:
        tail = "too few for a tail"
        if each.with_tail is not None:
            tails = " or ".join(
                f"{count:,} of evidence {clear:g}" for count, clear in zip(each.with_tail, CLEAR, strict=True)
            )
            tail = f"with the usual tail {tails}"
        now = " (these)" if each.held == forecast.held_out else ""
        lines.append(f"  {each.held:>9,} held out{now}: {each.by_counting:,} by counting alone, {tail}")
    return lines


def _choose_batch(session: Session) -> int:
    """Return the batch size of the settings if they give one, else the size that a worker finds to be fastest.

    The layout of weights is chosen as by an audit.
    """
    given = session.config.batch_size if "batch_size" in session.config.model_fields_set else None
    lay_out = lays_out(session)
    if given is not None and not lay_out:
        return given
    tuned = tune(session, given, lay_out)
    session.take_over(tuned.batch_size, tuned.channels_last, tuned.device)
    return tuned.batch_size


def _pilot(session: Session, manifest: Manifest, batch: int, quiet: bool) -> list[Piece]:
    """Have workers check the model and measure the stretches."""
    pieces: list[Piece] = []
    stretches = list(_stretches(manifest, session.config.seed, 2 * batch))
    progress = AuditProgress(sum(s.rows for s in stretches), len(stretches), quiet=quiet, doing="measuring")

    def task(stretch: Shard) -> Task:
        def done(piece: Piece) -> tuple[()]:
            pieces.append(piece)
            progress.advance(piece.rows, piece.failed)
            return ()

        return Task(f"the pilot of {stretch.name}", "pilot", (stretch, batch), done)

    run_tasks(session, PilotWorker, chain(check_model_tasks(session), map(task, stretches)), len(stretches), progress)
    return pieces


def _stretches(manifest: Manifest, seed: int, rows: int) -> Iterator[Shard]:
    """Yield random ranges of audited rows, one from each of `PIECES` equal parts of the data set."""
    random, total = np.random.default_rng(seed), manifest.data.rows
    edges = np.linspace(0, total, min(PIECES, ceil(total / rows)) + 1).astype(int)
    for index, (low, high) in enumerate(pairwise(edges)):
        start = int(random.integers(low, max(high - rows, low) + 1))
        yield Shard(SCORES_FOLDER, index, start, min(start + rows, int(high)))


def _interval(values: Range, shown: Callable[[float], str]) -> str:
    return f"{shown(values.middle)} [{shown(values.low)} to {shown(values.high)}]"


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 30 else f"{3600 * hours:.0f} s"
