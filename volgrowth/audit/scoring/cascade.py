"""`--cascade`: a cheap screen of every row, the preset for the rows that it lets through and a sample of the others.

The screen is the trace rate at the image itself, by one probe at one middle noise level: two evaluations. It is what
preset `standard` measures, less well, so that the two agree on what is high: on digits, near-planted digits, MNIST and
emoji of the bench all 121 flags of whole audits passed the default screen, with 7 to 12% of the distinct images. (The
length of the expected noise, at one evaluation, let 9 to 11% pass and lost 4 of the flags.) Held-out rows get both, so
that the screen becomes a part of the calibrated score (`analysis.calibration`); what it loses is bounded from the
sample (`analysis.screening`).

Rows are measured by the preset in two stages, `passed` and `sampled`. The choice of each is frozen in OUT before its
first row is measured, with the number of rows that it was made of, and a fragment's footer says which choice it holds.
So a resumed audit measures the same rows, and one that was extended, or had rows scored again, chooses anew.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from volgrowth.audit.output.manifest import SCORES_FOLDER, Manifest, Shard
from volgrowth.audit.scoring.measures import Flow, Launched
from volgrowth.audit.scoring.scorer import Prepared, Scorer, Trouble, _out_of_memory
from volgrowth.audit.workers.seeding import seeded
from volgrowth.config import AuditConfig, StandardMeasure
from volgrowth.numerics import Denoiser, trace_growth
from volgrowth.numerics.denoisers import Images
from volgrowth.records import Status
from volgrowth.storage.store import Store

STAGES = ("passed", "sampled")
LEVEL = 0.18
# what the screen is like where a scorer asks whether it takes derivatives, and at which level
MEASURE = StandardMeasure(run_in=(), levels=(LEVEL,), num_probes=1)


@dataclass(frozen=True)
class Chosen:
    """Sorted audited rows that a stage measures, and how many rows there were when they were chosen."""

    stage: str
    rows: np.ndarray
    of: int

    def of_shard(self, shard: Shard) -> list[int]:
        """Those of one shard."""
        if shard.folder != SCORES_FOLDER:
            return []
        return self.rows[np.searchsorted(self.rows, shard.start) : np.searchsorted(self.rows, shard.stop)].tolist()

    def todo(self, manifest: Manifest, done: dict[str, dict[str, str]]) -> dict[Shard, list[int]]:
        """Rows by shard, where these were not measured yet by the footers of what is there."""
        rows = {shard: self.of_shard(shard) for shard in manifest.shards}
        return {s: some for s, some in rows.items() if some and done[s.name].get(self.stage) != mark(some)}

    def save(self, store: Store) -> None:
        """Freeze it in OUT."""
        store.write_table(_file(self.stage), pa.table({"row": pa.array(self.rows, pa.int64())}), {"of": str(self.of)})

    @classmethod
    def load(cls, store: Store, stage: str, of: int | None = None) -> "Chosen | None":
        """What was frozen, if anything was, and of so many rows."""
        if not store.exists(_file(stage)):
            return None
        there = int(store.read_footer(_file(stage))[1]["of"])
        return cls(stage, store.read_table(_file(stage))["row"].to_numpy(), there) if of in (None, there) else None


def forget(store: Store) -> None:
    """Choose anew, since rows that were chosen from are scored again."""
    for stage in STAGES:
        if store.exists(_file(stage)):
            store.delete(_file(stage))


def mark(rows: list[int]) -> str:
    """What a fragment's footer says of the rows that were measured."""
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def _file(stage: str) -> str:
    return f"cascade-{stage}.parquet"


class Screener(Scorer):
    """Scores rows by the screen alone: complexity, hashes and the column `screen`."""

    def __init__(self, denoiser: Denoiser, config: AuditConfig, precise: Callable[[], Denoiser] | None = None):
        super().__init__(denoiser, config.model_copy(update={"measure": MEASURE}), precise)

    def _try(self, some: list[Prepared], size: int) -> Launched | Trouble:
        padded = some + [some[-1]] * (size - len(some))
        try:
            flow = self.flow([item.condition for item in padded])
            return screened(flow, self._images(padded), self.config.seed)
        except RuntimeError as error:
            # leave the block before anything is freed or retried: the traceback holds the tensors
            trouble, known = (Trouble.MEMORY if _out_of_memory(error) else Trouble.DERIVATIVE), error
            if trouble is Trouble.DERIVATIVE and (self.differenced or not self._lacks_derivative(padded)):
                raise
        self._why = f"{type(known).__name__}: {known}".splitlines()[0]
        return trouble


def screened(flow: Flow, images: Images, seed: int) -> Launched:
    """The screen of states (B, *state), at `LEVEL` or the nearest noise level that the model was trained on."""
    lowest, highest = flow.denoiser.noise_levels or (LEVEL, LEVEL)
    level = torch.tensor([min(max(LEVEL, lowest), highest)], dtype=torch.float64)
    trace = trace_growth(flow.denoiser, images, level, 1, seeded(seed, "probe"))
    beside = replace(flow, null=None).differences(1, 1)
    nothing = torch.zeros_like(trace.above_ceiling)
    return Launched({"screen": trace.rate[:, 0]}, nothing, nothing, nfe=trace.nfe + beside)


def with_screen(table: pa.Table, screens: pa.Table) -> pa.Table:
    """Scores with the screens of the same rows, in the same order, and what these cost; rows without a screen fail."""
    screen = pc.if_else(pc.equal(table["status"], Status.OK.value), screens["screen"], None)
    # rows that were measured before, by a worker whose answer was lost, know what was spent
    spent = pc.if_else(screens["growth"].is_valid(), screens["nfe"], pc.add(table["nfe"], screens["nfe"]))
    for name, column in (("screen", screen), ("nfe", spent)):
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.field(index), column)
    known = pc.equal(screens["status"], Status.OK.value)
    return pa.concat_tables([table.filter(known), screens.filter(pc.invert(known)).cast(table.schema)]).sort_by("row")
