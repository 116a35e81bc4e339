"""`--cascade`: a cheap screen of every row, then the preset for the rows that pass it and for a sample of the others.

The screen is preset `screen`, three forward passes. Every row gets the columns that it shares with the preset
(`SHARED`), and passes by them (`analysis.findings`); a row that the preset measures keeps them, and only the rest is
measured. Held-out rows are measured whole, so that the screen becomes a part of the calibrated score
(`analysis.calibration`); the sample bounds the flags that the screen loses (`analysis.calibration.screening`).

Rows are measured by the preset in two stages, `passed` and `sampled`. The choice of each is frozen in the output before
its first row is measured, with the number of rows it was made from and the screen, and a fragment's footer says which
choice it holds. So a resumed audit measures the same rows, and one that was extended, had rows scored again, or was
begun by a version with another screen, chooses anew.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from volgrowth.audit.output.fragments import missing_fragment
from volgrowth.audit.output.manifest import SCORES_FOLDER, Manifest, Shard
from volgrowth.audit.scoring.measures import Flow, Launched, launch_images
from volgrowth.audit.scoring.scorer import Scorer
from volgrowth.records import SCREEN_WEIGHTS, Status
from volgrowth.storage.store import Store

STAGES = ("passed", "sampled")
SHARED = ("screen", "loss", "noise_norm")
"""Columns of scores that preset `screen` measures and other presets do too."""
# how a frozen choice says by which screen it was made
_SCREEN = " + ".join(f"{weight:g} {column}" for column, weight in SCREEN_WEIGHTS.items())


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
        made_from = {"of": str(self.of), "screen": _SCREEN}
        store.write_table(_file(self.stage), pa.table({"row": pa.array(self.rows, pa.int64())}), made_from)

    @classmethod
    def load(cls, store: Store, stage: str, of: int | None = None) -> "Chosen | None":
        """Load the rows chosen for a stage, or None if there are none, or none of `of` rows by this screen."""
        if not store.exists(_file(stage)):
            return None
        table = store.read_table(_file(stage))
        made_from = table.schema.metadata or {}
        there, screen = int(made_from.get(b"of", b"-1")), made_from.get(b"screen", b"").decode()
        return cls(stage, table["row"].to_numpy(), there) if of is None or (of, _SCREEN) == (there, screen) else None


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
    """Scores rows by the screen alone: it fills complexity, hashes and the columns `SHARED`.

    The measure of its settings is the screen.
    """

    def measure_states(self, flow: Flow, states: Tensor, rows: list[int], axes: Tensor | None = None) -> Launched:
        found = launch_images(replace(flow, null=None), states, rows, self.measure, self.config.seed)
        nothing = torch.zeros_like(found.above_ceiling)  # marks are about growth, which these rows do not have
        return Launched({name: found.columns[name] for name in SHARED}, nothing, nothing, found.nfe)


class Completer(Scorer):
    """Scores rows that have been screened: by what the preset measures beyond the columns `SHARED`."""

    screened = True


def with_screen(table: pa.Table, screens: pa.Table) -> pa.Table:
    """Add the columns that the screen measured to scores, and its evaluations to theirs.

    Args:
        table: scores of some rows by a `Completer`.
        screens: scores of the same rows, in the same order, by the screen. A row that failed there fails in the result.
    """
    scored = pc.equal(table["status"], Status.OK.value)
    columns = {name: pc.if_else(scored, screens[name], None) for name in SHARED}
    # rows that were measured before, by a worker whose answer was lost, know what was spent
    columns["nfe"] = pc.if_else(screens["growth"].is_valid(), screens["nfe"], pc.add(table["nfe"], screens["nfe"]))
    for name, column in columns.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.field(index), column)
    known = pc.equal(screens["status"], Status.OK.value)
    return pa.concat_tables([table.filter(known), screens.filter(pc.invert(known)).cast(table.schema)]).sort_by("row")
