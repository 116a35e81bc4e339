"""`--adaptive`: rows whose flag could go either way are measured again with more probes.

A row's growth is known up to the standard error of its probes. Rows within `REACH` of it from the excess at which
flags begin are few; `FACTOR` times the probes halve their error. Held-out rows are treated by the same rule, so that
p-values still compare like with like. The choice is frozen in OUT before anything is measured again: a resumed audit
refines the same rows, and a fragment that has been refined says so in its footer.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.audit.output.manifest import HOLDOUT_FOLDER, SCORES_FOLDER, Manifest, Shard
from volgrowth.config import AuditConfig, StandardMeasure
from volgrowth.storage.store import Store

ADAPTIVE_FILE = "adaptive.parquet"
FACTOR = 4
REACH = 2.0


@dataclass(frozen=True)
class Refinement:
    """Which rows of which folder are measured again.

    Attributes:
        threshold: excess growth at which flags begin.
        num_probes: probes a level in the second measurement.
        chosen: sorted rows by folder.
    """

    threshold: float
    num_probes: int
    chosen: dict[str, np.ndarray]

    def rows(self, shard: Shard) -> list[int]:
        """Those of one shard."""
        rows = self.chosen.get(shard.folder, np.empty(0, int))
        return rows[(rows >= shard.start) & (rows < shard.stop)].tolist()

    def todo(self, manifest: Manifest, done: dict[str, dict[str, str]]) -> dict[Shard, list[int]]:
        """Rows by shard, where they were not refined yet by the footers of what is there."""
        rows = {shard: self.rows(shard) for shard in manifest.shards}
        return {shard: some for shard, some in rows.items() if some and "refined" not in done[shard.name]}

    def save(self, store: Store) -> None:
        """Freeze it in OUT."""
        folders = [folder for folder, rows in self.chosen.items() for _ in rows]
        rows = np.concatenate(list(self.chosen.values())) if folders else np.empty(0, int)
        footer = {"threshold": repr(self.threshold), "num_probes": str(self.num_probes)}
        columns = {"folder": pa.array(folders, pa.string()), "row": pa.array(rows, pa.int64())}
        store.write_table(ADAPTIVE_FILE, pa.table(columns), footer)

    @classmethod
    def choose(
        cls, config: AuditConfig, audited: tuple[pa.Table, pa.Table], held: tuple[pa.Table | None, pa.Table | None]
    ) -> "Refinement":
        """Rows whose excess is near to where flags begin, or would, when none has been raised.

        Args:
            audited, held: scores and findings of both sets, if there are both.
        """
        assert isinstance(config.measure, StandardMeasure)  # the config has seen to it
        sets = {SCORES_FOLDER: audited} | ({} if held[1] is None else {HOLDOUT_FOLDER: held})
        excess = {folder: findings["excess_growth"].to_numpy() for folder, (_, findings) in sets.items()}
        flagged = pc.fill_null(audited[1]["memorized"], False).to_numpy().astype(bool)
        null = excess.get(HOLDOUT_FOLDER, excess[SCORES_FOLDER])
        known = excess[SCORES_FOLDER][flagged] if flagged.any() else null[~np.isnan(null)]
        threshold = known.min() if flagged.any() else known.max(initial=-np.inf)
        chosen = {
            folder: near(excess[folder], scores["growth_error"].to_numpy(), threshold)
            for folder, (scores, _) in sets.items()
        }
        return cls(float(threshold), FACTOR * config.measure.num_probes, chosen)

    @classmethod
    def load(cls, store: Store) -> "Refinement | None":
        """What was frozen, if anything was."""
        if not store.exists(ADAPTIVE_FILE):
            return None
        table, footer = store.read_table(ADAPTIVE_FILE), store.read_footer(ADAPTIVE_FILE)[1]
        folder, row = np.array(table["folder"].to_pylist(), str), table["row"].to_numpy()
        chosen = {name: row[folder == name] for name in (SCORES_FOLDER, HOLDOUT_FOLDER)}
        return cls(float(footer["threshold"]), int(footer["num_probes"]), chosen)


def near(excess: np.ndarray, error: np.ndarray, threshold: float) -> np.ndarray:
    """Indices of the rows whose excess is within `REACH` standard errors of the threshold; NaN never is."""
    return np.flatnonzero(np.abs(excess - threshold) <= REACH * error)
