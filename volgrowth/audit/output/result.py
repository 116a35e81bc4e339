"""A finished audit, as tables."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from volgrowth.audit.output import views
from volgrowth.audit.output.fragments import read_scores
from volgrowth.audit.output.manifest import HOLDOUT_FOLDER, MANIFEST, SUCCESS, Manifest
from volgrowth.errors import OutputError
from volgrowth.storage.store import Store

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import polars as pl

FINDINGS_FILE = "findings.parquet"
HOLDOUT_FINDINGS_FILE = "holdout-findings.parquet"
SUMMARY_FILE = "summary.json"
REPORT_FILE = "report.html"


@dataclass(frozen=True, repr=False)
class Audit:
    """What an OUT holds. Tables are read when first asked for; columns are described in `volgrowth.records`.

    Attributes:
        store: the files of OUT.
        manifest: the frozen plan, as in `manifest.json`.
    """

    store: Store
    manifest: dict[str, Any]

    @cached_property
    def plan(self) -> Manifest:
        """The manifest as an object."""
        return Manifest.from_json(self.manifest, self.store.url)

    @cached_property
    def scores(self) -> pa.Table:
        """One row per image, as measured."""
        return read_scores(self.store, self.plan)

    @cached_property
    def holdout_scores(self) -> pa.Table | None:
        """The same for the held-out images, where there are any."""
        return read_scores(self.store, self.plan, HOLDOUT_FOLDER) if self.plan.holdout else None

    @cached_property
    def findings(self) -> pa.Table:
        """One row per image, calibrated."""
        return self.store.read_table(FINDINGS_FILE)

    @cached_property
    def holdout_findings(self) -> pa.Table | None:
        """The same for the held-out images, where there are any."""
        return self.store.read_table(HOLDOUT_FINDINGS_FILE) if self.plan.holdout else None

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The report's numbers."""
        return self.store.read_json(SUMMARY_FILE)

    def to_arrow(self) -> pa.Table:
        """Findings, and beside them the columns that only the scores have, one row per image."""
        return views.joined(self)

    def to_pandas(self) -> "pd.DataFrame":
        """The same as a pandas data frame. Flags are nullable booleans: those of rows without a score are missing."""
        return views.to_pandas(views.joined(self))

    def to_polars(self) -> "pl.DataFrame":
        """The same as a polars data frame.

        Raises:
            UsageError: polars is not installed.
        """
        return views.to_polars(views.joined(self))

    def flagged(self, *, images: bool = True) -> "datasets.Dataset":
        """The rows that are flagged as memorized, copies among them, highest excess growth first.

        Args:
            images: with a column `image`, decoded when it is looked at. Their files are copied into the cache of
                `datasets` for that; without images the data set they came from is not read.

        Raises:
            DataError: the data set is not there any more, or not what was audited.
        """
        return views.flagged(self, images)

    def clusters(self, *, images: bool = True) -> "datasets.Dataset":
        """The rows that have near duplicates, group by group (column `cluster`), the largest group first.

        Args and errors are those of `flagged`.
        """
        return views.clusters(self, images)

    def __repr__(self) -> str:
        return views.described(self)

    def _repr_html_(self) -> str:
        return views.html(self)


def open_audit(output: str) -> Audit:
    """Open the OUT of a finished audit, a folder or URL.

    Raises:
        OutputError: there is no audit, or it has not finished.
    """
    store = Store(output)
    if not store.exists(MANIFEST):
        raise OutputError(f"{output} holds no audit: expected the output of `volgrowth audit`")
    if not store.exists(SUCCESS):
        raise OutputError(f"the audit in {output} has not finished: run the same `volgrowth audit` again to resume it")
    return Audit(store, store.read_json(MANIFEST))
