"""`--cascade`: a cheap screen of every row, then the preset for the rows that pass it and for a sample of the others.

The screen is the trace rate at the image itself, by one probe at one middle noise level: two evaluations. Preset
`standard` measures the same rate more precisely, so the two agree on which images are high: on digits, near-planted
digits, MNIST and emoji of the bench all 121 flags of whole audits passed the default screen, with 7 to 12% of the
distinct images. (The length of the expected noise, at one evaluation, let 9 to 11% pass and lost 4 of the flags.)
Held-out rows get both measurements, so that the screen becomes a part of the calibrated score (`analysis.calibration`);
the sample bounds the flags that the screen loses (`analysis.calibration.screening`).

Rows are measured by the preset in two stages, `passed` and `sampled`. The choice of each is frozen in the output before
its first row is measured, with the number of rows it was made from, and a fragment's footer says which choice it holds.
So a resumed audit measures the same rows, and one that was extended, or had rows scored again, chooses anew.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from volgrowth.audit.output.fragments import missing_fragment
from volgrowth.audit.output.manifest import SCORES_FOLDER, Manifest, Shard
from volgrowth.audit.scoring.measures import Flow, Launched
from volgrowth.audit.scoring.scorer import Prepared, Scorer
from volgrowth.audit.workers.seeding import seeded
from volgrowth.config import StandardMeasure
from volgrowth.numerics import trace_growth
from volgrowth.numerics.denoisers import Images
from volgrowth.records import Status
from volgrowth.storage.store import Store

STAGES = ("passed", "sampled")
LEVEL = 0.18
# the measure of the preset that is nearest to the screen: a scorer asks it for a noise level and its derivatives
MEASURE = StandardMeasure(run_in=(), levels=(LEVEL,), num_probes=1)


@dataclass(frozen=True)
class Chosen:
    """Sorted audited rows that a stage measures, and how many rows there were when they were chosen."""

    stage: str
    rows: np.ndarray
    of: int

    def of_shard(self, shard: Shard) -> list[int]:
        """Return the chosen rows of one shard."""
        if shard.folder != SCORES_FOLDER:
            return []
        return self.rows[np.searchsorted(self.rows, shard.start) : np.searchsorted(self.rows, shard.stop)].tolist()

    def todo(self, store: Store, manifest: Manifest, done: dict[str, dict[str, str]]) -> dict[Shard, list[int]]:
        """Return the chosen rows that have not been measured yet, by their shards.

        Args:
            store: the output of the audit.
            manifest: its manifest.
            done: the footers of the published fragments, which say what was measured.

        Raises:
            OutputError: the fragment of a shard with chosen rows is missing or damaged.
        """
        found = {}
        for shard in manifest.shards:
            if rows := self.of_shard(shard):
                if shard.name not in done:
                    raise missing_fragment(store, shard)
                if done[shard.name].get(self.stage) != rows_mark(rows):
                    found[shard] = rows
        return found

    def save(self, store: Store) -> None:
        """Freeze the choice in the output."""
        store.write_table(_file(self.stage), pa.table({"row": pa.array(self.rows, pa.int64())}), {"of": str(self.of)})

    @classmethod
    def load(cls, store: Store, stage: str, of: int | None = None) -> "Chosen | None":
        """Load the rows chosen for a stage, or None if there are none, or none chosen among `of` rows."""
        if not store.exists(_file(stage)):
            return None
        table = store.read_table(_file(stage))
        there = int((table.schema.metadata or {}).get(b"of", b"-1"))
        return cls(stage, table["row"].to_numpy(), there) if of in (None, there) else None


def forget(store: Store) -> None:
    """Delete the frozen choices, since rows that they were made from are scored again."""
    for stage in STAGES:
        if store.exists(_file(stage)):
            store.delete(_file(stage))


def rows_mark(rows: list[int]) -> str:
    """Return the mark in a fragment's footer that says which rows a stage measured."""
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def _file(stage: str) -> str:
    return f"cascade-{stage}.parquet"


class Screener(Scorer):
    """Scores rows by the screen alone: it fills complexity, hashes and the column `screen`.

    The measure of its settings is `MEASURE`.
    """

    def launch(self, items: list[Prepared]) -> Launched:
        return screen_images(self.flow([item.condition for item in items]), self.images(items), self.config.seed)


def screen_images(flow: Flow, images: Images, seed: int) -> Launched:
    """Screen states (B, *state) of images, at `LEVEL` clamped to the model's trained range of noise levels."""
    lowest, highest = flow.denoiser.noise_levels or (LEVEL, LEVEL)
    level = torch.tensor([min(max(LEVEL, lowest), highest)], dtype=torch.float64)
    trace = trace_growth(flow.denoiser, images, level, 1, seeded(seed, "probe"))
    beside = replace(flow, null=None).differences(1, 1)
    nothing = torch.zeros_like(trace.above_ceiling)
    return Launched({"screen": trace.rate[:, 0]}, nothing, nothing, nfe=trace.nfe + beside)


def with_screen(table: pa.Table, screens: pa.Table) -> pa.Table:
    """Add the column `screen` to scores, and its evaluations to theirs.

    Args:
        table: scores of some rows by the preset.
        screens: scores of the same rows, in the same order, by the screen. A row that failed there fails in the result.
    """
    screen = pc.if_else(pc.equal(table["status"], Status.OK.value), screens["screen"], None)
    # rows that were measured before, by a worker whose answer was lost, know what was spent
    spent = pc.if_else(screens["growth"].is_valid(), screens["nfe"], pc.add(table["nfe"], screens["nfe"]))
    for name, column in (("screen", screen), ("nfe", spent)):
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.field(index), column)
    known = pc.equal(screens["status"], Status.OK.value)
    return pa.concat_tables([table.filter(known), screens.filter(pc.invert(known)).cast(table.schema)]).sort_by("row")
