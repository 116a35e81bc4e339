"""Two audits compared in bounded memory: a database matches their images, and sorts and counts their changes.

`changes` says what is computed. In memory are the changes of held-out images, and the p-values at which the q-value
changes; images are read a batch or a shard at a time.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from volgrowth.analysis.as_numpy import as_floats, as_mask
from volgrowth.analysis.calibration.error_rates import FDR, fewest_flags, rows_needed
from volgrowth.analysis.calibration.expected_scores import MIN_IMAGES
from volgrowth.analysis.comparison.changes import (
    CHANGED,
    CHANGES,
    LISTED,
    ChangeVerdict,
    Comparison,
    WholeComparison,
)
from volgrowth.analysis.comparison.circumstances import sample_note, setting_notes
from volgrowth.analysis.comparison.evidence_rules import different_evidence
from volgrowth.analysis.comparison.matching import Matched, check_comparable, match_images
from volgrowth.analysis.comparison.nulls import conformal_p_values, median_change, mirrored_p_values
from volgrowth.analysis.distinct import simes
from volgrowth.analysis.parts.database import Database, open_database, whole_clusters
from volgrowth.analysis.parts.rates import Rates
from volgrowth.analysis.policy import new_file_of
from volgrowth.audit.output.result import Audit
from volgrowth.errors import UsageError
from volgrowth.storage.csv_files import CsvTable
from volgrowth.storage.store import Store

_JUDGED = "SELECT change, count(*) AS n FROM matched WHERE judged GROUP BY change"
_TESTS = """SELECT p, sum(n)::BIGINT AS n FROM (
    SELECT p_rise AS p, count(*) AS n FROM pictures WHERE tested GROUP BY p UNION ALL
    SELECT p_fall AS p, count(*) AS n FROM pictures WHERE tested GROUP BY p
) GROUP BY p ORDER BY p DESC"""
_CHANGES = """CREATE TABLE changes AS SELECT cluster, content AS content_hash, row_a, row_b, copies_a, copies_b,
    z_a, z_b, matched.change, CASE WHEN judged THEN p_rise WHEN scored THEN 1 END AS p_rise,
    CASE WHEN judged THEN p_fall WHEN scored THEN 1 END AS p_fall, q_value, verdict
FROM matched JOIN verdicts USING (cluster) LEFT JOIN tried ON judged AND matched.change = tried.change ORDER BY row_a"""
_ANY_OF = {"tested": "scored", "judged": "judged", "before": "flagged_a", "after": "flagged_b"}
"""Columns of pictures that say whether one of their images has something, and the column that says so of images."""
_ROWS, _BY_ROW = "SELECT * FROM changes", "ORDER BY row_a"


def _strongest(verdict: ChangeVerdict) -> str:
    """Return the query for the pictures with a verdict that are listed, and of each the image that changed most."""
    largest = "abs(change) DESC NULLS LAST, row_a"
    return f"""SELECT * FROM changes WHERE verdict = '{verdict.value}'
        QUALIFY row_number() OVER (PARTITION BY cluster ORDER BY {largest}) = 1
        ORDER BY q_value, {largest} LIMIT {LISTED}"""


@dataclass(frozen=True)
class Compared:
    """A comparison while its database is open.

    Attributes:
        database: with the table `changes`.
        a: the audit before, which knows the ids of its images.
        comparison: what the changes are together.
    """

    database: Database
    a: Audit
    comparison: Comparison

    def parts(self) -> Iterator[pa.Table]:
        """Yield the images in both, by row in A, with the columns of `CHANGES`: those of one shard at a time."""
        for part in self.a.parts(findings=["image_id"]):
            if len(part):
                start, stop = part["row"][0].as_py(), part["row"][-1].as_py()
                yield _named(self.database.table(f"{_ROWS} WHERE row_a BETWEEN {start} AND {stop} {_BY_ROW}"), part)

    def whole(self) -> WholeComparison:
        """Return the comparison with all of its images."""
        return WholeComparison(**vars(self.comparison), table=pa.concat_tables([CHANGES.empty_table(), *self.parts()]))


@contextmanager
def compare_in_parts(a: Audit, b: Audit, fdr: float = FDR) -> Iterator[Compared]:
    """Compare two finished audits that measured the same quantity and have images in common, in bounded memory.

    Args:
        a: the audit before.
        b: the audit after.
        fdr: rate of false discoveries among the significant changes, in (0, 1).

    Returns:
        The comparison, whose images can be read until the end of the block.

    Raises:
        UsageError: the two cannot be compared, or `fdr` is out of range.
        OutputError: one was not calibrated, its tables do not fit each other, or the disk has no room.
    """
    check_comparable(a, b, fdr)
    with open_database(a.frozen.data.rows + b.frozen.data.rows, "comparison") as database:
        matched = match_images(database, a, b)
        null = matched.null if len(matched.null) >= MIN_IMAGES and not matched.draws_moved else None
        null_rows = _try_changes(database, null)
        _combine(database)
        found = _decide(database, fdr, 1 / (1 + null_rows))
        counts = database.table("SELECT verdict, count(*) AS n FROM verdicts GROUP BY verdict").to_pylist()
        database.run(_CHANGES, *(f"DROP TABLE {name}" for name in ("matched", "tried", "pictures", "verdicts")))
        comparison = Comparison(
            names=(a.store.url, b.store.url),
            counts={verdict: sum(c["n"] for c in counts if c["verdict"] == verdict) for verdict in ChangeVerdict},
            listed=_listed(database, a),
            only=matched.only,
            only_flagged=matched.only_flagged,
            null="mirrored" if null is None else "held-out",
            null_rows=null_rows,
            tests=found.tests,
            fdr=fdr,
            warnings=(*_about_null(matched), *_about_flags(a, b), *_about_size(found, null_rows, fdr)),
        )
        yield Compared(database, a, comparison)


def compare_audits(a: Audit, b: Audit, fdr: float = FDR) -> WholeComparison:
    """Compare two audits as `compare_in_parts`, and return all of their images."""
    with compare_in_parts(a, b, fdr) as found:
        return found.whole()


def changes_file(file: str) -> tuple[Store, str]:
    """Return where a table of changes is written: the store, and the name in it.

    Raises:
        UsageError: `file` ends neither in .parquet nor in .csv, or is a file of an audit.
    """
    if not file.endswith((".parquet", ".csv")):
        raise UsageError(f"table {file}: expected a file name that ends in .parquet or .csv")
    return new_file_of(file)


def write_changes(compared: Compared, file: str) -> None:
    """Write the table of a comparison as a Parquet or CSV file, whole or not at all.

    Args:
        compared: to be written.
        file: path or URL that ends in .parquet or .csv.

    Raises:
        UsageError: as `changes_file`.
        OutputError: the file cannot be written there.
    """
    (store, name), found = changes_file(file), compared.comparison
    about = {"a": found.names[0], "b": found.names[1], "null": found.null, "fdr": repr(found.fdr)}
    with ExitStack() as whole:
        if name.endswith(".csv"):
            writer: Any = whole.enter_context(CsvTable(whole.enter_context(store.open_new(name)), CHANGES))
        else:
            writer = whole.enter_context(store.table_writer(name, CHANGES, about))
        for part in compared.parts():
            writer.write(part)


def _try_changes(database: Database, null: np.ndarray | None) -> int:
    """Make the table `tried`: the p-values of each change that is judged. Returns the number of changes behind them.

    Args:
        database: with the table `matched`.
        null: changes of unchanged images, (m,); None for the mirror image of the judged changes.
    """
    database.run("CREATE TABLE tried (change DOUBLE, p_rise DOUBLE, p_fall DOUBLE)")

    def changes(order: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for some in database.batches(f"{_JUDGED} ORDER BY change {order}"):
            yield some["change"].to_numpy(), some["n"].to_numpy()

    images = database.number("SELECT count(*) FROM matched WHERE judged")
    found: Iterable[tuple[np.ndarray, np.ndarray]] = ()
    if null is not None:
        found = ((change, conformal_p_values(change, null)) for change, _ in changes("ASC"))
    elif images:
        median = median_change(changes("ASC"), images)
        found = mirrored_p_values(changes("ASC"), changes("DESC"), median, images)
    for change, (p_rise, p_fall) in found:
        database.add("tried", pa.table({"change": change, "p_rise": p_rise, "p_fall": p_fall}))
    return images if null is None else len(null)


def _combine(database: Database) -> None:
    """Make the table `pictures`: what the images of each picture are together."""
    database.run(
        """CREATE TABLE pictures (cluster BIGINT, tested BOOLEAN, judged BOOLEAN, before BOOLEAN, after BOOLEAN,
            p_rise DOUBLE, p_fall DOUBLE)"""
    )
    images = database.batches(
        """SELECT cluster, scored, judged, flagged_a, flagged_b, p_rise, p_fall
        FROM matched LEFT JOIN tried ON judged AND matched.change = tried.change ORDER BY cluster"""
    )
    for some in whole_clusters(images):
        names, picture = np.unique(some["cluster"].to_numpy(), return_inverse=True)
        judged = as_mask(some["judged"])
        found = {"cluster": pa.array(names)}
        for name, column in _ANY_OF.items():
            found[name] = pa.array(np.bincount(picture, as_mask(some[column])) > 0)
        for name in ("p_rise", "p_fall"):
            p_value = as_floats(some[name])[judged]
            found[name] = pa.array(simes(p_value, picture[judged], len(names)))
        database.add("pictures", pa.table(found))


@dataclass(frozen=True)
class _Decision:
    """Numbers behind the verdicts: of one-sided tests, of judged pictures, of significant ones, and of tests of judged
    pictures with the smallest p-value there can be."""

    tests: int
    judged: int
    significant: int
    extreme: int


def _decide(database: Database, fdr: float, smallest: float) -> _Decision:
    """Make the table `verdicts` of all pictures; `smallest` is the smallest p-value that an image can have."""
    tests = 2 * database.number("SELECT count(*) FROM pictures WHERE tested")
    rates = Rates(database.batches(_TESTS), tests)
    database.run("CREATE TABLE verdicts (cluster BIGINT, q_value DOUBLE, verdict VARCHAR)")
    judged = significant = extreme = 0
    for some in database.batches("SELECT * FROM pictures"):
        p_value = np.stack([some["p_rise"].to_numpy(), some["p_fall"].to_numpy()])
        tested, masked = as_mask(some["tested"]), as_mask(some["judged"])
        q_value = np.stack([rates.q_values(np.where(tested, p, np.nan)) for p in p_value]).min(0)
        judged += int(masked.sum())
        significant += int((q_value <= fdr).sum())
        extreme += int((p_value[:, masked] <= smallest).sum())
        columns = some["cluster"], pa.array(q_value, from_pandas=True), pa.array(_verdicts(some, q_value <= fdr))
        database.add("verdicts", pa.table(columns, names=["cluster", "q_value", "verdict"]))
    return _Decision(tests, judged, significant, extreme)


def _verdicts(pictures: pa.Table, significant: np.ndarray) -> np.ndarray:
    """Return the verdict of each picture, (pictures,), as is the mask `significant`."""
    before, after = as_mask(pictures["before"]), as_mask(pictures["after"])
    rises = significant & (pictures["p_rise"].to_numpy() < pictures["p_fall"].to_numpy())
    falls = significant & ~rises
    cases = {
        ChangeVerdict.NOT_JUDGED: ~as_mask(pictures["judged"]),
        ChangeVerdict.BECAME: rises & after & ~before,
        ChangeVerdict.CEASED: falls & before & ~after,
        ChangeVerdict.ROSE: rises,
        ChangeVerdict.FELL: falls,
    }
    return np.select(list(cases.values()), [verdict.value for verdict in cases], ChangeVerdict.SAME.value)


def _listed(database: Database, a: Audit) -> dict[ChangeVerdict, pa.Table]:
    """Return the pictures of each kind of significant change that `Comparison.listed` names."""
    found = {verdict: database.table(_strongest(verdict)) for verdict in CHANGED}
    rows = np.unique(np.concatenate([table["row_a"].to_numpy() for table in found.values()]))
    if not len(rows):
        return {verdict: CHANGES.empty_table() for verdict in CHANGED}
    parts = (part.filter(pa.array(np.isin(part["row"].to_numpy(), rows))) for part in a.parts(findings=["image_id"]))
    named = pa.concat_tables(parts)
    return {verdict: _named(table, named) for verdict, table in found.items()}


def _named(images: pa.Table, rows: pa.Table) -> pa.Table:
    """Give images, with the columns of the table `changes`, their ids from rows of A in rising order."""
    place = np.searchsorted(rows["row"].to_numpy(), images["row_a"].to_numpy())
    images = images.append_column("image_id", rows["image_id"].take(pa.array(place)))
    return images.select(CHANGES.names).cast(CHANGES)


def _about_null(images: Matched) -> list[str]:
    """Warn if the held-out images of the two audits cannot tell, or only in part, how far an unchanged image moves."""
    common, sizes = len(images.null), images.held_sizes
    assumed = (
        "Changes were compared with their own mirror image at the median instead, which assumes that most images did "
        "not change and that the differences of those are symmetric, and which finds little where images changed both "
        "ways."
    )
    if common < MIN_IMAGES:
        return [
            f"{common} usable held-out images are common to both audits (A has {sizes[0]}, B has {sizes[1]}), fewer "
            f"than {MIN_IMAGES}. {assumed} Audit both with the same --holdout to do without."
        ]
    if images.draws_moved:
        return [
            f"Preset paper draws its axes by row, and audited images have other rows in B than in A, which makes their "
            f"changes noisier than those of held-out ones. {assumed} Audit one of them with another seed to do without."
        ]
    if 2 * common < max(sizes):
        return [
            f"The held-out sets differ: only {common} usable images of A's {sizes[0]} and B's {sizes[1]} are in both. "
            f"Audit both with the same --holdout to compare with all."
        ]
    return []


def _about_flags(a: Audit, b: Audit) -> list[str]:
    """Warn if the two audits measure or flag by different settings and evidence, or were verified in other ways."""
    names = ("A", "B")
    said = setting_notes(a, b, names)
    if rules := different_evidence(a, b):
        said.append(
            f"The audits flag by different evidence (A: {rules[0]}; B: {rules[1]}), so that an image may be flagged in "
            f"one of them for that reason alone. Changes compare excess growth, which parts and weights do not "
            "change and a reference audit does."
        )
    if proof := sample_note(a, b, names):
        said.append(f"{proof} `became` and `ceased` go by what was found so.")
    return said


def _about_size(found: _Decision, null_rows: int, fdr: float) -> list[str]:
    """Say why no change could be significant, and what would help."""
    if not found.judged:
        return ["No image in both could be judged: each lacks a score or is outside a calibration's range."]
    smallest = 1 / (1 + null_rows)
    fewest = fewest_flags(found.tests, smallest, fdr)
    if found.significant or found.extreme >= fewest:
        return []
    enough = rows_needed(found.tests, found.extreme, fdr)
    return [
        f"With {null_rows} images to compare with no p-value is below {smallest:.2g}, which at least {fewest} of the "
        f"{found.tests} tests would have to reach for any finding, and {found.extreme} did. With {enough} held-out "
        f"images common to both audits {max(found.extreme, 1)} would be enough."
    ]
