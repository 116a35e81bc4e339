"""A finished audit in the forms of other libraries: pandas, polars, `datasets`, and HTML for a notebook.

Each library is imported only when a view needs it.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from html import escape
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.audit.output.listings import open_frozen_data, read_rows
from volgrowth.audit.output.manifest import Manifest
from volgrowth.audit.output.unchanged import check_row, check_rows, expected_hashes
from volgrowth.errors import UsageError, VolgrowthError
from volgrowth.plain import plain
from volgrowth.sources import Source
from volgrowth.storage.csv_files import CsvTable
from volgrowth.storage.store import Store
from volgrowth.version import VERSION

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import polars as pl
    import pyarrow.dataset as ds


def to_pandas(table: pa.Table) -> "pd.DataFrame":
    """Return a pandas data frame whose flags and whole numbers keep their types where some are missing.

    So a column of flags selects rows.
    """
    import pandas as pd

    types = {
        pa.bool_(): pd.BooleanDtype(),
        pa.int32(): pd.Int32Dtype(),
        pa.int64(): pd.Int64Dtype(),
        pa.uint64(): pd.UInt64Dtype(),
    }
    return table.to_pandas(types_mapper=types.get)


def to_polars(table: pa.Table) -> "pl.DataFrame":
    """Return a polars data frame.

    Raises:
        UsageError: polars is not installed.
    """
    try:
        import polars as pl
    except ImportError:
        raise UsageError("to_polars needs polars, which is not installed: pip install polars") from None
    frame = pl.from_arrow(table.replace_schema_metadata())
    assert isinstance(frame, pl.DataFrame)  # a table gives one
    return frame


def lazy_dataset(store: Store, name: str) -> "ds.Dataset":
    """Return a Parquet file of an output as a data set that is read when it is asked; its footer is checked now."""
    import pyarrow.dataset as ds
    from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

    schema = store.read_schema(name)
    files = LocalFileSystem() if store.local else PyFileSystem(FSSpecHandler(store.files))
    checked = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    form = ds.ParquetFileFormat(default_fragment_scan_options=checked)
    return ds.dataset(store.file_path(name), schema, form, files)


def dataset(
    table: pa.Table, order: list[tuple[str, str]], images_of: tuple[Store, Manifest] | None
) -> "datasets.Dataset":
    """Return rows of an audit as a data set in another order.

    Args:
        table: rows of the audit in rising order, with the column `row`.
        order: columns to sort by, each with "ascending" or "descending".
        images_of: the output and the manifest of the audit whose images are added as a column `image`.
    """
    import datasets

    table = table.replace_schema_metadata()
    if not images_of:
        return datasets.Dataset(table.sort_by(order))
    if not len(table):
        features = datasets.Features(image=datasets.Image(), **datasets.Features.from_arrow_schema(table.schema))
        return datasets.Dataset.from_dict({name: [] for name in features}, features)
    beside = [_images(*images_of, table), datasets.Dataset(table)]
    return datasets.concatenate_datasets(beside, axis=1).select(pc.sort_indices(table, order).to_numpy())


def _images(store: Store, manifest: Manifest, table: pa.Table) -> "datasets.Dataset":
    """Return the images of rows in rising order, which is the order in which the data set is read best.

    All of them are compared with what was scored, those that `datasets` made before and finds in its cache too.
    """
    import datasets

    reading = _Reading(store, manifest, table)
    identity = hashlib.sha256(f"{VERSION} {manifest.digest} {reading.rows} {reading.scored}".encode())
    try:
        images = datasets.Dataset.from_generator(
            reading,
            features=datasets.Features(image=datasets.Image()),
            fingerprint=identity.hexdigest()[:32],  # by it `datasets` finds in its cache what it made before
        )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, VolgrowthError):
            raise error.__cause__ from None
        raise
    if not reading.done:
        check_rows(reading.source(), [reading.scored])
    return images


class _Reading:
    """Reads the images of rows, compared with what was scored; `done` says whether it was asked to."""

    def __init__(self, store: Store, manifest: Manifest, table: pa.Table):
        self.store, self.manifest, self.done = store, manifest, False
        self.rows = table["row"].to_pylist()
        self.scored = expected_hashes(table, manifest.config["id_column"])

    def source(self) -> Source:
        return open_frozen_data(self.store, self.manifest)

    def __call__(self) -> Iterator[dict[str, Any]]:
        self.done = True
        for row in read_rows(self.source(), self.rows):
            check_row(row, self.scored)
            yield {"image": row.data and {"bytes": row.data, "path": None}}


def facts(manifest: Manifest, summary: dict[str, Any] | None) -> dict[str, str]:
    """Return the few facts that describe an audit to a person, by their names; `summary` None if not finished."""
    split = f" ({manifest.data.split})" if manifest.data.split else ""
    known = {
        "Model": manifest.model.name,
        "Data": f"{manifest.data.name}{split}",
        "Preset": manifest.config["measure"]["preset"],
        "Images": f"{manifest.data.rows:,} rows",
    }
    return known | (_findings(summary) if summary else {})


def _findings(summary: dict[str, Any]) -> dict[str, str]:
    counts, detection, proof = summary["counts"], summary["detection"], summary.get("verification")
    known = {"Images": f"{counts['ok']:,} of {counts['rows']:,} rows scored"}
    if detection:
        promise = "promised" if detection["null"] == "held-out" else "assumed"
        known["Flagged"] = (
            f"{detection['memorized']:,} distinct images as memorized at a false-discovery rate of "
            f"{detection['fdr']:.0%} ({promise})"
            if detection.get("tests", 1)
            else "none of the images could be judged"
        )
    if proof:
        known["Verified"] = (
            f"{proof['reproduced_images']:,} images reproduced by {proof['samples']:,} samples, "
            f"{proof['flagged_reproduced']:,} of them among the {proof['flagged']:,} flagged ones"
        )
    if caveats := summary.get("caveats"):
        known["Caveats"] = " ".join(caveats)
    return known


def one_line(known: dict[str, str], url: str) -> str:
    """Return one line that says what was audited and what was found."""
    flags = f", {known['Flagged']}" if "Flagged" in known else ""
    return plain(f"<Audit of {known['Data']} under {known['Model']}: {known['Images']}{flags}; {url}>")


def html_table(known: dict[str, str], store: Store, report: str) -> str:
    """Return a small HTML table. Every string in it is escaped, since names come from elsewhere."""
    rows = "".join(
        f'<tr><th scope="row" style="text-align:left">{name}</th>'
        f'<td style="text-align:left"><bdi>{escape(value)}</bdi></td></tr>'
        for name, value in known.items()
    )
    return f"<table><caption>Memorization audit</caption>{rows}{_report_row(store, report)}</table>"


def _report_row(store: Store, report: str) -> str:
    """Return the row of the report, as a link if a browser may follow it: notebooks serve files below their folder."""
    path = store.path(report)
    name = escape(path)
    if store.local:
        here = Path(path).is_relative_to(Path.cwd())
        target = quote(Path(os.path.relpath(path)).as_posix()) if here else Path(path).as_uri()
        name = f'<a href="{escape(target)}" target="_blank" rel="noopener">{name}</a>'
    return f'<tr><th scope="row" style="text-align:left">Report</th><td style="text-align:left">{name}</td></tr>'


def write_csv(parts: Iterable[pa.Table], file: str) -> None:
    """Write tables of one schema as a CSV file, whole or not at all; see `Audit.write_csv`."""
    if not file.endswith(".csv"):
        raise UsageError(f"{file}: expected a file name that ends in .csv")
    folder, _, name = file.rpartition("/")
    rest = iter(parts)
    first = next(rest)
    with (
        Store(folder or ("/" if file.startswith("/") else ".")).open_new(name) as opened,
        CsvTable(opened, first.schema) as writer,
    ):
        for part in chain([first], rest):
            writer.write(part)
