"""A finished audit as other libraries take it: one Arrow table, pandas, polars, `datasets`, and the HTML of a notebook.

Their libraries are imported by whoever asks for a view. Images are read from the audited data set by the listing that
was frozen with the audit, so that a data set that has changed since is an error and not another picture.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.audit.output.freezing import stored_listing
from volgrowth.audit.output.manifest import SCORES_FOLDER
from volgrowth.errors import OutputError, UsageError, VolgrowthError
from volgrowth.sources import open_source
from volgrowth.version import VERSION

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import polars as pl

    from volgrowth.audit.output.result import Audit

# rows between two wanted ones that are read through to save a read
READ_THROUGH = 16


def joined(audit: "Audit") -> pa.Table:
    """Findings, and beside them the columns that only the scores have, one row per image.

    Raises:
        OutputError: the two are not of the same rows.
    """
    table, scores = audit.findings, audit.scores
    if not table["row"].equals(scores["row"]):
        raise OutputError(
            f"findings and scores in {audit.store.url} are not of the same rows: delete {audit.store.url}/_SUCCESS and "
            "run the same `volgrowth audit` again, which keeps the scores"
        )
    for name in scores.column_names:
        if name not in table.column_names:
            table = table.append_column(scores.schema.field(name), scores[name])
    return table


def to_pandas(table: pa.Table) -> "pd.DataFrame":
    """Flags and whole numbers keep their types where some are missing, so that a column of flags selects rows."""
    import pandas as pd

    types = {
        pa.bool_(): pd.BooleanDtype(),
        pa.int32(): pd.Int32Dtype(),
        pa.int64(): pd.Int64Dtype(),
        pa.uint64(): pd.UInt64Dtype(),
    }
    return table.to_pandas(types_mapper=types.get)


def to_polars(table: pa.Table) -> "pl.DataFrame":
    """The same in polars.

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


def flagged(audit: "Audit", images: bool = True) -> "datasets.Dataset":
    """Rows flagged as memorized, highest excess first."""
    table = joined(audit)
    table = table.filter(pc.fill_null(table["memorized"], False))
    return _dataset(audit, table, [("excess_growth", "descending"), ("row", "ascending")], images)


def clusters(audit: "Audit", images: bool = True) -> "datasets.Dataset":
    """Rows in groups of near duplicates, group by group, the largest first."""
    table = joined(audit)
    table = table.filter(pc.greater(table["copies"], 1))
    return _dataset(audit, table, [("copies", "descending"), ("cluster", "ascending"), ("row", "ascending")], images)


def _dataset(audit: "Audit", table: pa.Table, order: list[tuple[str, str]], images: bool) -> "datasets.Dataset":
    """A table, which is in row order, as a data set in another order."""
    import datasets

    table = table.replace_schema_metadata()
    if not images:
        return datasets.Dataset(table.sort_by(order))
    if not len(table):
        features = datasets.Features(image=datasets.Image(), **datasets.Features.from_arrow_schema(table.schema))
        return datasets.Dataset.from_dict({name: [] for name in features}, features)
    beside = [_images(audit, table["row"].to_numpy()), datasets.Dataset(table)]
    return datasets.concatenate_datasets(beside, axis=1).select(pc.sort_indices(table, order).to_numpy())


def _images(audit: "Audit", rows: np.ndarray) -> "datasets.Dataset":
    """The images of rows, which rise: in the order in which the source is read best."""
    import datasets

    identity = hashlib.sha256(f"{VERSION} {audit.plan.digest} {rows.tolist()}".encode())
    try:
        return datasets.Dataset.from_generator(
            _encoded,
            features=datasets.Features(image=datasets.Image()),
            gen_kwargs={"audit": audit, "rows": rows},
            fingerprint=identity.hexdigest()[:32],  # by it `datasets` finds in its cache what it made before
        )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, VolgrowthError):
            raise error.__cause__ from None
        raise


def _encoded(audit: "Audit", rows: np.ndarray) -> Iterator[dict[str, Any]]:
    data, config = audit.plan.data, audit.manifest["config"]
    listing = stored_listing(audit.store, SCORES_FOLDER, data)
    source = open_source(data.name, data.split, config["image_column"], config["id_column"], listing)
    for run in np.split(rows, np.flatnonzero(np.diff(rows) > READ_THROUGH) + 1):
        wanted = set(run.tolist())
        for found in source.read(int(run[0]), int(run[-1]) + 1):
            if found.row in wanted:
                yield {"image": found.data and {"bytes": found.data, "path": None}}


def described(audit: "Audit") -> str:
    """One line: of what, and what was found."""
    facts = _facts(audit)
    flags = f", {facts['Flagged']}" if "Flagged" in facts else ""
    return f"<Audit of {facts['Data']} under {facts['Model']}: {facts['Images']}{flags}; {audit.store.url}>"


def html(audit: "Audit") -> str:
    """A small table; every string in it is escaped, since names come from elsewhere."""
    rows = "".join(
        f'<tr><th scope="row" style="text-align:left">{name}</th>'
        f'<td style="text-align:left"><bdi>{escape(value)}</bdi></td></tr>'
        for name, value in _facts(audit).items()
    )
    return f"<table><caption>Memorization audit</caption>{rows}{_report_row(audit)}</table>"


def _facts(audit: "Audit") -> dict[str, str]:
    plan = audit.plan
    split = f" ({plan.data.split})" if plan.data.split else ""
    facts = {
        "Model": plan.model.name,
        "Data": f"{plan.data.name}{split}",
        "Preset": plan.config["measure"]["preset"],
        "Images": f"{plan.data.rows:,} rows",
    }
    with suppress(OutputError):  # an audit that is not finished has no summary
        facts |= _findings(audit.summary)
    return facts


def _findings(summary: dict[str, Any]) -> dict[str, str]:
    counts, detection, proof = summary["counts"], summary["detection"], summary.get("verification")
    facts = {"Images": f"{counts['ok']:,} of {counts['rows']:,} rows scored"}
    if detection:
        promise = "promised" if detection["null"] == "held-out" else "assumed"
        facts["Flagged"] = (
            f"{detection['memorized']:,} distinct images as memorized at a false-discovery rate of "
            f"{detection['fdr']:.0%} ({promise})"
        )
    if proof:
        facts["Verified"] = (
            f"{proof['flagged_reproduced']:,} of {proof['flagged']:,} flagged images reproduced by "
            f"{proof['samples']:,} samples"
        )
    return facts


def _report_row(audit: "Audit") -> str:
    """The report, as a link where a browser may follow it: notebooks serve files below their own folder."""
    path = audit.store.path("report.html")
    name = escape(path)
    if audit.store.local:
        here = Path(path).is_relative_to(Path.cwd())
        target = quote(Path(os.path.relpath(path)).as_posix()) if here else Path(path).as_uri()
        name = f'<a href="{escape(target)}" target="_blank" rel="noopener">{name}</a>'
    return f'<tr><th scope="row" style="text-align:left">Report</th><td style="text-align:left">{name}</td></tr>'
