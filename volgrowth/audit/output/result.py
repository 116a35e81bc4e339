"""A finished audit, as tables."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from types import NoneType
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.audit.output import views
from volgrowth.audit.output.fragments import read_scores
from volgrowth.audit.output.hub import push_findings
from volgrowth.audit.output.listings import open_frozen_data
from volgrowth.audit.output.manifest import HOLDOUT_FOLDER, MANIFEST, SCORES_FOLDER, SUCCESS, Manifest
from volgrowth.audit.output.mending import Shape, misshapen, require
from volgrowth.audit.output.parts import check_findings, other_rows, read_parts
from volgrowth.audit.output.trust import refuse_strangers, refuse_ways_out
from volgrowth.errors import OutputError
from volgrowth.held import held_by
from volgrowth.records import FINDINGS, SCORES
from volgrowth.sources import Source
from volgrowth.storage.store import Store

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import polars as pl
    import pyarrow.dataset as ds

FINDINGS_FILE = "findings.parquet"
HOLDOUT_FINDINGS_FILE = "holdout-findings.parquet"
SUMMARY_FILE = "summary.json"
REPORT_FILE = "report.html"
REDACTED_FILE = "report-redacted.html"
FIGURES_FOLDER = "figures"
SUMMARY_SHAPE: Shape = {
    "counts": {"rows": int, "ok": int},
    "measure": dict,
    "detection": (dict, NoneType),
    "duplicates": (dict, NoneType),
    "run": dict,
    "versions": dict,
}


@dataclass(frozen=True, repr=False)
class Audit:
    """An audit in its output folder. Tables are read when first asked for; `volgrowth.records` describes the columns.

    Attributes:
        store: the files of the output folder.
        manifest: settings, model and data as they were frozen before the first row was scored: `manifest.json`.
        trust_output: True to use the model and the data that the manifest names, whoever made it.
        columns: columns of the scores that are read, all for None; of very many rows the others would fill the memory.
        kept: what must live as long as the audit: the model that was given as an object, and the temporary folder of an
            audit without an output, which goes with it.
    """

    store: Store
    manifest: dict[str, Any]
    trust_output: bool = False
    columns: tuple[str, ...] | None = None
    kept: Any = field(default=None, compare=False)

    @cached_property
    def frozen(self) -> Manifest:
        """The manifest as an object."""
        return Manifest.from_json(self.manifest, self.store.url)

    @cached_property
    def scores(self) -> pa.Table:
        """One row per audited image, as measured."""
        return read_scores(self.store, self.frozen, columns=self.columns)

    @cached_property
    def holdout_scores(self) -> pa.Table | None:
        """One row per held-out image, as measured; None without a held-out set."""
        return read_scores(self.store, self.frozen, HOLDOUT_FOLDER, self.columns) if self.frozen.holdout else None

    @cached_property
    def findings(self) -> pa.Table:
        """One row per audited image, calibrated."""
        return self._findings(FINDINGS_FILE, self.frozen.data.rows)

    @cached_property
    def holdout_findings(self) -> pa.Table | None:
        """One row per held-out image, calibrated; None without a held-out set."""
        return self._findings(HOLDOUT_FINDINGS_FILE, self.frozen.holdout.rows) if self.frozen.holdout else None

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The numbers of the report."""
        content = self.store.read_json(SUMMARY_FILE)
        if wrong := misshapen(content, SUMMARY_SHAPE):
            raise OutputError(
                f"{self.store.path(SUMMARY_FILE)} is not as this version writes it ({wrong}; written by volgrowth "
                f"{content.get('volgrowth', 'of unknown version')}): run the same `volgrowth audit` again, which keeps "
                f"the scores"
            )
        return content

    def _findings(self, name: str, rows: int) -> pa.Table:
        table = self.store.read_table(name)
        check_findings(self.store, name, table.column_names, len(table), rows)
        return table

    def parts(
        self, *, scores: Sequence[str] = (), findings: Sequence[str] = (), held_out: bool = False
    ) -> Iterator[pa.Table]:
        """Yield the audited rows in parts, those of one shard after the other, so that no table has to fit the memory.

        That a bit of the findings has changed may only be known after the last part: discard what you made of the parts
        if this raises.

        Args:
            scores: columns of the scores to read.
            findings: columns of the findings to read. A column of both is read from here.
            held_out: read the held-out rows instead.

        Returns:
            Tables with the column `row` and the chosen ones, in row order; what an older version did not write is null.

        Raises:
            DamagedError: a file is damaged.
            OutputError: a file cannot be read, or findings and scores are not of the same rows.
        """
        folder, name = (HOLDOUT_FOLDER, HOLDOUT_FINDINGS_FILE) if held_out else (SCORES_FOLDER, FINDINGS_FILE)
        return read_parts(self.store, self.frozen, folder, name, scores, findings)

    def findings_dataset(self) -> "ds.Dataset":
        """Return the findings as a lazy `pyarrow.dataset.Dataset`, which reads what a query needs when it runs.

        polars scans it lazily: `polars.scan_pyarrow_dataset(audit.findings_dataset())`. Checksums of the pages that are
        read are compared, the digest of the whole file is not: `volgrowth check-output` does that.
        """
        return views.lazy_dataset(self.store, FINDINGS_FILE)

    def open_data(self) -> Source:
        """Open the audited data set by the listing that was frozen with the audit.

        Raises:
            DataError: the data set is not there any more, or not what was audited.
            OutputError: this account did not make the audit, and it was opened without `trust_output`.
        """
        self.refuse_if_strange("opening the data")
        return open_frozen_data(self.store, self.frozen)

    def refuse_if_strange(self, purpose: str) -> None:
        """Raise an OutputError if this account did not make the audit, and it was opened without `trust_output`."""
        refuse_strangers(self.store.url, self.manifest, self.trust_output, purpose)

    def to_arrow(self) -> pa.Table:
        """Return findings, and beside them the columns that only the scores have, one row per image.

        Raises:
            OutputError: findings and scores are of different rows.
        """
        table, scores = self.findings, self.scores
        if not table["row"].equals(scores["row"]):
            raise other_rows(self.store.url)
        for name in scores.column_names:
            if name not in table.column_names:
                table = table.append_column(scores.schema.field(name), scores[name])
        return table

    def to_pandas(self) -> "pd.DataFrame":
        """Return the table of `to_arrow` as a pandas data frame.

        Flags are nullable booleans: those of rows without a score are missing.
        """
        return views.to_pandas(self.to_arrow())

    def to_polars(self) -> "pl.DataFrame":
        """Return the table of `to_arrow` as a polars data frame.

        Raises:
            UsageError: polars is not installed.
        """
        return views.to_polars(self.to_arrow())

    def write_csv(self, file: str) -> None:
        """Write the table of `to_arrow` as CSV, a shard's rows at a time; lists are JSON.

        Args:
            file: path or URL that ends in .csv.

        Raises:
            UsageError: `file` does not end so.
            OutputError: the file cannot be written, or findings and scores are of different rows.
        """
        views.write_csv(self.parts(scores=SCORES.names, findings=FINDINGS.names), file)

    def push_to_hub(self, repository: str, *, private: bool = True) -> str:
        """Send the findings to the Hugging Face hub, as a data set with a card that holds the summary; no images.

        Args:
            repository: owner/name of a repository of data sets, which is made if it is not there.
            private: make it private; one that is there stays as it is.

        Returns:
            The URL of the repository.

        Raises:
            OutputError: the hub cannot be reached, or this account may not write there (`HF_TOKEN`).
        """
        return push_findings(self, repository, private)

    def flagged(self, *, images: bool = True) -> "datasets.Dataset":
        """Return the rows that are flagged as memorized, copies among them, highest excess growth first.

        Args:
            images: add a column `image`, decoded when it is looked at. The image files are copied into the cache of
                `datasets` for that, and compared with what was scored at each call; without images the data set they
                came from is not read.

        Raises:
            DataError: the data set is not there any more, or one of these rows does not hold the image that was scored.
            OutputError: as `open_data`.
        """
        table = self.to_arrow()
        table = table.filter(pc.fill_null(table["memorized"], False))
        return self._dataset(table, [("excess_growth", "descending"), ("row", "ascending")], images)

    def clusters(self, *, images: bool = True) -> "datasets.Dataset":
        """Return the rows that have near duplicates, group by group (column `cluster`), the largest group first.

        Args:
            images: as in `flagged`.

        Raises:
            DataError: as `flagged`.
        """
        table = self.to_arrow()
        table = table.filter(pc.greater(table["copies"], 1))
        return self._dataset(table, [("copies", "descending"), ("cluster", "ascending"), ("row", "ascending")], images)

    def _dataset(self, table: pa.Table, order: list[tuple[str, str]], images: bool) -> "datasets.Dataset":
        if images:
            self.refuse_if_strange("opening the data")
        return views.dataset(table, order, (self.store, self.frozen) if images else None)

    def _facts(self) -> dict[str, str]:
        summary = None
        with suppress(OutputError):  # an audit that is not finished has no summary
            summary = self.summary
        return views.facts(self.frozen, summary)

    def __repr__(self) -> str:
        return views.one_line(self._facts(), self.store.url)

    def _repr_html_(self) -> str:
        return views.html_table(self._facts(), self.store, REPORT_FILE)


def open_audit(output: str, *, trust_output: bool = False) -> Audit:
    """Open a finished audit.

    Args:
        output: the folder or URL that `volgrowth audit` wrote to.
        trust_output: True to open the data set that the output names although another account, or another machine, made
            the audit. Its tables are read in any case.

    Returns:
        The audit; its tables are read when they are asked for.

    Raises:
        OutputError: there is no audit, or it has not finished.
    """
    return open_stored(Store(output), trust_output)


def open_stored(store: Store, trust_output: bool = False) -> Audit:
    """Open a finished audit in a store; see `open_audit`."""
    output = store.url
    if not store.exists(MANIFEST):
        raise OutputError(f"{output} holds no audit: expected the output of `volgrowth audit`")
    if not store.exists(SUCCESS):
        raise OutputError(f"the audit in {output} has not finished: run the same `volgrowth audit` again to resume it")
    audit = Audit(store, store.read_json(MANIFEST), trust_output, kept=held_by(output))
    refuse_ways_out(store, audit.manifest, trust_output)
    tables = [HOLDOUT_FINDINGS_FILE] if audit.frozen.holdout else []
    names = [FINDINGS_FILE, *tables, SUMMARY_FILE, *(shard.name for shard in audit.frozen.shards)]
    require(store, names, "run the same `volgrowth audit` again, which makes what is missing")
    return audit
