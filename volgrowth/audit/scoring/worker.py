"""The worker that scores shards: plain methods that read rows, compute and publish. No Ray here."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from volgrowth.audit.output.fragments import as_scores, publish_fragment, read_fragment
from volgrowth.audit.output.manifest import SCORES_FOLDER, Shard
from volgrowth.audit.output.runs import Tally
from volgrowth.audit.scoring.arithmetic import describe_arithmetic
from volgrowth.audit.scoring.cascade import STAGES, Completer, Screener, rows_mark, with_screen
from volgrowth.audit.scoring.decoders import Decoders
from volgrowth.audit.scoring.derivatives import Differentiating, derivative_deviation
from volgrowth.audit.scoring.prefetch import decoding_threads
from volgrowth.audit.scoring.scorer import Scorer
from volgrowth.audit.scoring.understanding import ModelCheck, NoisyStates, examine, untested
from volgrowth.audit.workers.fitting import BatchSize
from volgrowth.audit.workers.loading import ModelWorker
from volgrowth.config import LOW_PRECISION, AuditConfig, PaperMeasure
from volgrowth.errors import VolgrowthError, kind_and_line
from volgrowth.models.network import Compiled, NetworkDenoiser
from volgrowth.numerics import Denoiser
from volgrowth.records import Failure, Status
from volgrowth.sources import Row, to_unit
from volgrowth.sources.pixels.described import describe_rows

# rows that the noise floor is measured on
NOISE_ROWS = 8
# largest deviation of u . J u from central differences without a warning; in a low precision the network's weights and
# sums are rounded, which growth shows little of
DEVIATION, LOW_DEVIATION = 0.01, 0.05

log = logging.getLogger("volgrowth")


class ScoringWorker(ModelWorker):
    """Scores shards and publishes their fragments."""

    def prepare(self) -> None:
        super().prepare()
        self.scorer = self.new_scorer(self.fast, self.config)

    def new_scorer(self, denoiser: Denoiser, config: AuditConfig, kind: type[Scorer] = Scorer) -> Scorer:
        """Return a scorer. It can load a float32 copy of the model, which finite differences need in low precision."""
        describe = self.decoders.describe if self.decoders else describe_rows
        scorer = kind(
            denoiser,
            config,
            lambda: self.load("float32"),
            decoding_threads(denoiser.device, self.workers_here, self.cores_here),
            self.manifest.png_method,
            describe,
            self.turn,
        )
        scorer.measured = self.count
        return scorer

    @cached_property
    def decoders(self) -> Decoders | None:
        """The processes that decode beside a GPU; None on a CPU, whose cores all have workers that compute."""
        device = self.denoiser.device
        threads = decoding_threads(device, self.workers_here, self.cores_here)
        return Decoders(threads) if device.type == "cuda" else None

    @cached_property
    def completer(self) -> Scorer:
        """Scorer of rows that a cascade has screened."""
        return self.new_scorer(self.fast, self.config, Completer)

    @cached_property
    def screener(self) -> Scorer:
        """Scorer of all rows by a cascade's screen."""
        return self.new_scorer(self.fast, self.config.model_copy(update={"measure": self.config.screen}), Screener)

    @cached_property
    def fast(self) -> Denoiser:
        """The model, compiled if the settings ask for it and its measure can use it.

        Forward mode does not work on compiled networks; backward passes do.
        """
        measure = self.config.measure
        if not self.config.compile:
            return self.denoiser
        if isinstance(measure, PaperMeasure) and measure.derivative == "jvp":
            log.warning("forward mode does not work on compiled networks: this one runs as it is")
        elif not isinstance(self.denoiser, NetworkDenoiser):
            log.warning("a %s denoiser cannot be compiled: it runs as it is", self.denoiser.kind)
        else:
            return self.denoiser.compiled()
        return self.denoiser

    def score(self, shard: Shard, rows: Sequence[int] | None, failures: Mapping[int, Failure]) -> Tally:
        """Score a shard and publish it.

        Args:
            shard: the rows, and the fragment that holds their scores.
            rows: score only these rows, of a fragment that is published; None for the whole shard.
            failures: rows that end the process or never end: they are recorded and not tried.
        """
        table, tally = self._first(shard, rows, failures)
        if rows is None:
            publish_fragment(self.store, self.manifest, shard, table, self.attempt)
        else:
            self._replace(shard, table)
        return tally

    def probe(self, shard: Shard, rows: Sequence[int]) -> Tally:
        """Score some rows of a shard and forget the scores, to see if this process survives it."""
        return self._first(shard, rows, {})[1]

    def _first(
        self, shard: Shard, rows: Sequence[int] | None, failures: Mapping[int, Failure]
    ) -> tuple[pa.Table, Tally]:
        """Measure every row: by the preset, or in a cascade by the screen, and held-out rows by both."""
        held_out = shard.folder != SCORES_FOLDER
        if not self.config.cascade or (held_out and self.config.measure.includes_screen):
            return self._measure(self.scorer, self._rows(shard, rows), failures)
        screens, tally = self._measure(self.screener, self._rows(shard, rows), failures)
        if not held_out:
            return screens, tally
        table, more = self._measure(self.completer, self._rows(shard, rows), failures)
        table = with_screen(table, screens)
        return table, replace(tally + more, images=len(table), failed=_failed(table))

    def complete(self, shard: Shard, rows: Sequence[int], stage: str) -> Tally:
        """Measure rows of a published shard that were only screened, for a stage of a cascade, and publish it again."""
        table, tally = self._measure(self.completer, self._rows(shard, rows), {})
        before, footer = read_fragment(self.store, shard), self.store.read_footer(shard.name)[1]
        screens = before.filter(pc.is_in(before["row"], value_set=table["row"].combine_chunks()))
        known = {name: footer[name] for name in STAGES if name in footer}
        self._replace(shard, with_screen(table, screens), **{**known, stage: rows_mark(list(rows))})
        return tally

    def check_model(self, shard: Shard, rows: Sequence[int]) -> ModelCheck:
        """Measure on some rows of a shard whether the model's answer is the expected noise of these images."""
        try:
            read = [item for row in self._rows(shard, rows) for item in self.scorer.prepare([row])]
            items, states = [item for item in read if item.pixels is not None], list[torch.Tensor]()
            batch = BatchSize(self.config.images_at_once)
            batch.each(items, lambda some: states.append(self.scorer.images(list(some)).cpu()))
            conditions = [item.condition for item in items] if self.config.condition_column else None
            if not items:
                return untested(0)
            return examine(NoisyStates(self.denoiser, torch.cat(states), conditions, self.config.seed, batch))
        except VolgrowthError as error:  # scoring meets it again, and ends the audit or records the row
            return ModelCheck("untested", 0, (), kind_and_line(error))

    def noise_floor(self, shard: Shard) -> dict[str, Any]:
        """Measure how far growth moves with the arithmetic alone, on a few rows of a published shard.

        Returns:
            `rows`: how many rows; `batch`: the largest difference of growth over batch sizes, and against the network
            as it is if it was compiled; `dtype`: the largest difference against float64, None if the device cannot
            hold that; `derivative`: see `_check_derivative`, None if the check failed or the measure takes none;
            `compiling`: why the network was not compiled, or None; `arithmetic`: the name of the device, `launch`, how
            micro-batches are launched, and see `describe_arithmetic`, None if that failed; `problem`: why something
            failed, or None.
        """
        try:
            return self._noise_floor(shard)
        except VolgrowthError as error:  # would end the audit, whose scores do not depend on this
            return {"rows": 0, "batch": None, "dtype": None, "derivative": None, "problem": kind_and_line(error)}

    def _noise_floor(self, shard: Shard) -> dict[str, Any]:
        table = self.store.read_table(shard.name)
        table = table.filter(pc.equal(table["status"], Status.OK.value))[:NOISE_ROWS]
        rows, growth = table["row"].to_pylist(), table["growth"].to_numpy()
        if table["growth"].null_count:  # a cascade has only screened them
            growth = self.scorer.score(self._rows(shard, rows))["growth"].to_numpy()

        def moved(denoiser: Denoiser, **settings: Any) -> float:
            scorer = self.new_scorer(denoiser, self.config.model_copy(update=settings))
            return float(np.abs(scorer.score(self._rows(shard, rows))["growth"].to_numpy() - growth).max(initial=0.0))

        sizes = {1, max(1, self.config.images_at_once // 2)}
        batch = max(moved(self.denoiser, batch_size=size) for size in sizes)
        precise, dtype = None, None
        try:
            precise = self.load("float64")
            dtype = moved(precise, dtype="float64", batch_size=NOISE_ROWS)
        except (VolgrowthError, RuntimeError):  # too large for the device, or made for one precision
            precise = None
        derivative, arithmetic, problem = None, None, None
        try:
            arithmetic = self._arithmetic(shard, rows[:1])
        except Exception as error:  # an operation that cannot be watched must not cost the noise floor
            problem = f"the arithmetic could not be observed ({kind_and_line(error)})"
        try:
            derivative = self._check_derivative(shard, rows, precise)
        except (VolgrowthError, RuntimeError) as error:  # as above, of the float32 replica
            problem = f"derivatives could not be checked ({kind_and_line(error)})"
        found = {"rows": len(rows), "batch": batch, "dtype": dtype, "derivative": derivative}
        return {**found, "compiling": self._uncompiled, "arithmetic": arithmetic, "problem": problem}

    @property
    def _plain_scorer(self) -> Scorer:
        """A scorer of the network as it is: compiled, it was compared with that, and would be compiled for few rows."""
        return self.scorer if self.scorer.differenced else Scorer(self.denoiser, self.config)

    def _arithmetic(self, shard: Shard, rows: list[int]) -> dict[str, Any]:
        scorer = self._plain_scorer
        items = [item for row in self._rows(shard, rows) for item in scorer.prepare([row])]
        if not self.scorer.launcher.used:  # another worker measured the shard
            self.scorer.score(self._rows(shard, rows))
        launch = self.scorer.launcher.said
        return {"device": self.device_name, "launch": launch, **describe_arithmetic(scorer, items)}

    def _check_derivative(self, shard: Shard, rows: list[int], precise: Denoiser | None) -> dict[str, Any] | None:
        """Compare the derivative that scores rest on with central differences, by `derivative_deviation`.

        Args:
            shard: a published shard.
            rows: rows of it that have a score.
            precise: the model in float64, if the device can hold it.

        Returns:
            A `deviation` above `tolerance` is a reason to warn. `differenced` and `compiling` say why differences were
            taken in place of derivatives, and why the network was not compiled. None for a measure of forward passes.
        """
        measure = self.scorer.measure
        if not isinstance(measure, Differentiating):
            return None
        scorer = self._plain_scorer
        low = self.config.dtype in LOW_PRECISION
        exact = precise or (self.load("float32") if low else self.denoiser)
        read = list(self._rows(shard, rows))
        pixels = np.stack([each for each in map(self.pixels, read) if each is not None])
        images = torch.from_numpy(to_unit(pixels)).to(scorer.denoiser.device, scorer.denoiser.dtype)
        conditions = [row.condition for row in read]
        found = list[dict[str, Any]]()

        def compare(some: Sequence[int]) -> None:
            given, states = [conditions[index] for index in some], scorer.denoiser.embed(images[list(some)])
            beside = exact.given(given) if self.config.condition_column else exact
            used = scorer.flow(given).denoiser
            found.append(derivative_deviation(used, beside, states, measure, self.config.seed))

        BatchSize(len(images)).each(range(len(images)), compare)
        return {
            **found[0],
            "deviation": float(np.max([each["deviation"] for each in found])),  # NaN if one is
            "tolerance": LOW_DEVIATION if low else DEVIATION,
            "images": len(images),
            "used": _used(scorer),
            "against": "float64" if precise is not None else "float32",
            "differenced": scorer.differenced,
            "compiling": self._uncompiled,
        }

    @property
    def _uncompiled(self) -> str | None:
        """Why the network was not compiled though the settings ask for it; None if it was, or if they do not."""
        network = getattr(self.fast, "network", None)
        return network.problem if isinstance(network, Compiled) else None

    def _measure(self, scorer: Scorer, rows: Iterable[Row], failures: Mapping[int, Failure]) -> tuple[pa.Table, Tally]:
        began = time.monotonic()
        table, decode_wait, device_wait = scorer.score_and_wait(rows, failures)
        tally = Tally(
            images=len(table),
            failed=_failed(table),
            evaluations=pc.sum(table["nfe"]).as_py() or 0,
            seconds=time.monotonic() - began,
            decode_wait=decode_wait,
            device_wait=device_wait,
            smallest_batch=pc.min(table["batch"]).as_py() or 0,
        )
        return table, tally

    def _rows(self, shard: Shard, rows: Sequence[int] | None = None) -> Iterator[Row]:
        """Read the rows of a shard, or some of them in rising order."""
        source = self.source(shard.folder)
        if rows is None:
            return source.read(shard.start, shard.stop)
        wanted = set(rows)  # in one go: for every stretch a row group would be fetched, or a tar scanned, again
        return (row for row in source.read(min(rows), max(rows) + 1) if row.row in wanted)

    def _replace(self, shard: Shard, table: pa.Table, **extra: str) -> None:
        """Publish a shard again, with the rows of `table` in place of the ones it had."""
        before = read_fragment(self.store, shard)
        kept = before.filter(pc.invert(pc.is_in(before["row"], value_set=table["row"].combine_chunks())))
        whole = as_scores([kept, table])
        publish_fragment(self.store, self.manifest, shard, whole.sort_by("row"), self.attempt, **extra)


def _failed(table: pa.Table) -> int:
    return pc.sum(pc.not_equal(table["status"], Status.OK.value)).as_py() or 0


def _used(scorer: Scorer) -> str:
    measure = scorer.measure
    if isinstance(measure, PaperMeasure):
        return "forward mode" if measure.derivative == "jvp" else f"differences of radius {measure.radius:g}"
    return "central differences" if scorer.differenced else "backward passes"
