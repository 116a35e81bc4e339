"""What a worker does: one model replica, and plain methods that read rows, compute and publish. No Ray here."""

import logging
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from volgrowth.audit.output.fragments import publish_fragment
from volgrowth.audit.output.listings import open_frozen_data
from volgrowth.audit.output.manifest import SCORES_FOLDER, Manifest, Shard
from volgrowth.audit.output.runs import Tally
from volgrowth.audit.sampling.drawing import Drawing, read_images, write_images
from volgrowth.audit.sampling.neighbours import IMAGES_AT_ONCE, Neighbours
from volgrowth.audit.scoring.cascade import STAGES, Screener, mark, with_screen
from volgrowth.audit.scoring.measures import derivative_deviation
from volgrowth.audit.scoring.scorer import Scorer
from volgrowth.config import LOW_PRECISION, AuditConfig, PaperMeasure
from volgrowth.errors import DataError, ModelError, VolgrowthError, kind_and_line
from volgrowth.models import inspect_model, load_model
from volgrowth.models.load import DType
from volgrowth.models.network import Compiled, NetworkDenoiser
from volgrowth.numerics import Denoiser
from volgrowth.records import Status
from volgrowth.sources import BadImage, Row, Source, decode_image, to_unit
from volgrowth.storage.store import Store

NOISE_ROWS = 8
# of u . J u; in a low precision the network's weights and sums are rounded, which growth shows little of
DEVIATION, LOW_DEVIATION = 0.01, 0.05

log = logging.getLogger("volgrowth")


class DataWorker:
    """Opens the audit's data sets and its output. Construction is cheap; `prepare` does what can fail.

    `attempt` is the number of the attempt at the task that runs, set by whoever calls its method.
    """

    def __init__(self, config: AuditConfig, manifest: Manifest, device: str):
        self.config, self.manifest, self.device = config, manifest, device
        self.attempt = 1
        self.sources: dict[str, Source] = {}
        self.image_shape = manifest.image_shape

    def prepare(self) -> None:
        """Get ready. An answer means that this worker can take tasks.

        Raises:
            OutputError: OUT cannot be opened.
        """
        # one thread each, on every machine: the bits of a sum depend on how it is split
        torch.set_num_threads(1)
        self.store = Store(self.config.output)

    def source(self, folder: str) -> Source:
        """The audited or the held-out set, opened once by its frozen listing.

        Raises:
            DataError: the data set is no longer the one that was listed.
        """
        if folder not in self.sources:
            self.sources[folder] = open_frozen_data(self.store, self.manifest, folder)
        return self.sources[folder]

    def pixels(self, row: Row) -> np.ndarray | None:
        """(C, H, W) uint8 as the model sees it, None where there is no image."""
        try:
            return decode_image(row.data or b"", self.image_shape, self.config.max_pixels)
        except BadImage:
            return None


class ModelWorker(DataWorker):
    """Holds a model replica too."""

    def prepare(self) -> None:
        """Load the model.

        Raises:
            ModelError: as `load_model`; or the model here is not the one in the manifest.
        """
        super().prepare()
        name = self.config.model_arguments
        if inspect_model(**name).hash != self.manifest.model.hash:
            raise ModelError(
                f"model {self.config.model} has other weights on {platform.node()} than where the audit was started: "
                f"expected {self.manifest.model.hash}; put the same model on every node"
            )
        self.denoiser = self._load(self.config.dtype)

    def _load(self, dtype: DType) -> Denoiser:
        return load_model(**self.config.model_arguments, dtype=dtype, device=self.device)


class ScoringWorker(ModelWorker):
    """Scores shards and publishes their fragments."""

    def prepare(self) -> None:
        super().prepare()
        self.scorer = self.new_scorer(self.config)

    def new_scorer(self, config: AuditConfig) -> Scorer:
        """One with the network compiled where that is asked for."""
        return Scorer(self.fast, config, lambda: self._load("float32"))

    @cached_property
    def fast(self) -> Denoiser:
        """The model, compiled where that is asked for and backward passes or no derivatives at all are taken of it."""
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

    def score(self, shard: Shard, rows: Sequence[int] | None, crashed: Mapping[int, str]) -> Tally:
        """Score a shard, or only some rows of a published one, and publish it.

        Args:
            crashed: rows that end the process, and the reason: they are recorded and not tried.
        """
        table, tally = self._first(shard, rows, crashed)
        if rows is None:
            publish_fragment(self.store, self.manifest, shard, table, self.attempt)
        else:
            self._replace(shard, table)
        return tally

    def probe(self, shard: Shard, rows: Sequence[int]) -> Tally:
        """Score some rows of a shard and forget them: whether this process survives it."""
        return self._first(shard, rows, {})[1]

    def _first(self, shard: Shard, rows: Sequence[int] | None, crashed: Mapping[int, str]) -> tuple[pa.Table, Tally]:
        """What every row of a shard gets: the preset, or in a cascade the screen, and held-out rows both."""
        if not self.config.cascade:
            return self._measure(self.scorer, self._rows(shard, rows), crashed)
        screener = Screener(self.fast, self.config, lambda: self._load("float32"))
        screens, tally = self._measure(screener, self._rows(shard, rows), crashed)
        if shard.folder == SCORES_FOLDER:
            return screens, tally
        table, more = self._measure(self.scorer, self._rows(shard, rows), crashed)
        table = with_screen(table, screens)
        return table, replace(tally + more, images=len(table), failed=_failed(table))

    def complete(self, shard: Shard, rows: Sequence[int], stage: str) -> Tally:
        """Measure rows of a published shard that were only screened, for a stage of a cascade, and publish it again."""
        table, tally = self._measure(self.scorer, self._rows(shard, rows), {})
        before, footer = self.store.read_table(shard.name), self.store.read_footer(shard.name)[1]
        screens = before.filter(pc.is_in(before["row"], value_set=table["row"].combine_chunks()))
        known = {name: footer[name] for name in STAGES if name in footer}
        self._replace(shard, with_screen(table, screens), **{**known, stage: mark(list(rows))})
        return tally

    def noise_floor(self, shard: Shard) -> dict[str, Any]:
        """How far growth moves with the arithmetic alone: the largest difference over some rows of a published shard.

        `batch`: over batch sizes, and against the network as it is where it was compiled; `dtype`: against float64,
        None where that is not possible here. Same units as growth. `derivative`: see `_check_derivative`; None where
        the check failed, and `problem` says why.
        """
        try:
            return self._noise_floor(shard)
        except VolgrowthError as error:  # would be raised to the user, and scores do not depend on this
            return {"rows": 0, "batch": None, "dtype": None, "derivative": None, "problem": kind_and_line(error)}

    def _noise_floor(self, shard: Shard) -> dict[str, Any]:
        table = self.store.read_table(shard.name)
        table = table.filter(pc.equal(table["status"], Status.OK.value))[:NOISE_ROWS]
        rows, growth = table["row"].to_pylist(), table["growth"].to_numpy()
        if table["growth"].null_count:  # a cascade has only screened them
            growth = self.scorer.score(self._rows(shard, rows))["growth"].to_numpy()

        def moved(denoiser: Denoiser, **settings: Any) -> float:
            scorer = Scorer(denoiser, self.config.model_copy(update=settings), lambda: self._load("float32"))
            return float(np.abs(scorer.score(self._rows(shard, rows))["growth"].to_numpy() - growth).max(initial=0.0))

        sizes = {1, max(1, self.config.images_at_once // 2)}
        batch = max(moved(self.denoiser, batch_size=size) for size in sizes)
        precise: Denoiser | None = None
        try:
            precise = self._load("float64")
            dtype = moved(precise, dtype="float64", batch_size=NOISE_ROWS)
        except (VolgrowthError, RuntimeError):  # too large for the device, or made for one precision
            dtype = None
        derivative, problem = None, None
        try:
            derivative = self._check_derivative(shard, rows, precise if dtype is not None else None)
        except (VolgrowthError, RuntimeError) as error:  # as above, of a network in low precision
            problem = f"derivatives could not be checked ({kind_and_line(error)})"
        return {"rows": len(rows), "batch": batch, "dtype": dtype, "derivative": derivative, "problem": problem}

    def _check_derivative(self, shard: Shard, rows: list[int], precise: Denoiser | None) -> dict[str, Any]:
        """The derivative that scores rest on, against central differences, by `measures.derivative_deviation`.

        `deviation` above `tolerance` is why to warn. `differenced` and `compiling` say what had to be done without.
        """
        # of the network as it is: compiled, it was compared with that, and would be again for so few rows
        scorer = self.scorer if self.scorer.differenced else Scorer(self.denoiser, self.config)
        low = self.config.dtype in LOW_PRECISION
        exact = precise or (self._load("float32") if low else self.denoiser)
        read = list(self._rows(shard, rows))
        pixels = np.stack([each for each in map(self.pixels, read) if each is not None])
        images = torch.from_numpy(to_unit(pixels)).to(scorer.denoiser.device, scorer.denoiser.dtype)
        conditions = [row.condition for row in read]
        flow = scorer.flow(conditions)
        if self.config.condition_column:
            exact = exact.given(conditions)
        found = derivative_deviation(flow, exact, scorer.denoiser.embed(images), scorer.measure, self.config.seed)
        network = getattr(self.fast, "network", None)
        return {
            **found,
            "tolerance": LOW_DEVIATION if low else DEVIATION,
            "images": len(images),
            "used": _used(scorer),
            "against": "float64" if precise is not None else "float32",
            "differenced": scorer.differenced,
            "compiling": network.problem if isinstance(network, Compiled) else None,
        }

    def _measure(self, scorer: Scorer, rows: Iterable[Row], crashed: Mapping[int, str]) -> tuple[pa.Table, Tally]:
        began = time.monotonic()
        table = scorer.score(rows, crashed)
        tally = Tally(
            images=len(table),
            failed=_failed(table),
            evaluations=pc.sum(table["nfe"]).as_py() or 0,
            seconds=time.monotonic() - began,
            decode_wait=scorer.decode_wait,
            device_wait=scorer.device_wait,
            smallest_batch=pc.min(table["batch"]).as_py() or 0,
        )
        return table, tally

    def _rows(self, shard: Shard, rows: Sequence[int] | None = None) -> Iterator[Row]:
        """The rows of a shard, or some of them, which are read in one go."""
        if rows is None:
            return self.source(shard.folder).read(shard.start, shard.stop)
        wanted = set(rows)
        there = self.source(shard.folder).read(min(rows), max(rows) + 1)
        return (row for row in there if row.row in wanted)

    def _replace(self, shard: Shard, table: pa.Table, **extra: str) -> None:
        """Publish a shard again, with the rows of `table` in place of its own."""
        before = self.store.read_table(shard.name)
        kept = before.filter(pc.invert(pc.is_in(before["row"], value_set=table["row"].combine_chunks())))
        whole = pa.concat_tables([kept.replace_schema_metadata(), table.cast(before.schema).replace_schema_metadata()])
        publish_fragment(self.store, self.manifest, shard, whole.sort_by("row"), self.attempt, **extra)


def _failed(table: pa.Table) -> int:
    return pc.sum(pc.not_equal(table["status"], Status.OK.value)).as_py() or 0


def _used(scorer: Scorer) -> str:
    measure = scorer.measure
    if isinstance(measure, PaperMeasure):
        return "forward mode" if measure.derivative == "jvp" else f"differences of radius {measure.radius:g}"
    return "central differences" if scorer.differenced else "backward passes"


class DrawingWorker(ModelWorker):
    """Draws images from the model."""

    def draw(self, drawing: Drawing) -> int:
        """Draw images and publish them; how many."""
        source = self.source(SCORES_FOLDER)
        clean = {}
        for row in drawing.rows:
            pixels = self.pixels(next(iter(source.read(row, row + 1))))
            if pixels is None:
                raise DataError(f"row {row} of {self.manifest.data.name} was scored and can no longer be read")
            clean[row] = pixels
        conditions = {row: next(iter(source.read(row, row + 1))).condition for row in drawing.condition_rows}
        images = drawing.images(
            self.denoiser, self.config.seed, clean, conditions, self.config.guidance, self.config.images_at_once
        )
        write_images(self.store, self.manifest, drawing, images)
        return len(images)


class SearchingWorker(DataWorker):
    """Finds what in a data set is near to drawn images."""

    def prepare(self) -> None:
        super().prepare()
        self.queries: tuple[list[str], np.ndarray] | None = None

    def nearest(self, names: list[str], shard: Shard, groups: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances and groups (S, k) of the images nearest to all drawn ones, among a range of rows.

        Args:
            names: files with the drawn images.
            groups: (rows of the range,) group of each row; negative ones are passed over.
        """
        if self.queries is None or self.queries[0] != names:
            self.queries = names, np.concatenate([read_images(self.store, name, self.image_shape) for name in names])
        found = Neighbours(self.queries[1], k, self.device)
        rows = zip(self.source(shard.folder).read(shard.start, shard.stop), groups.tolist(), strict=True)
        wanted = ((self.pixels(row), group) for row, group in rows if group >= 0)
        while some := list(islice(wanted, IMAGES_AT_ONCE)):
            there = [(pixels, group) for pixels, group in some if pixels is not None]
            if there:
                found.add(np.stack([pixels for pixels, _ in there]), np.array([group for _, group in there]))
        return found.squared, found.group
