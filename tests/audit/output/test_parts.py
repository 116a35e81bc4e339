"""Parts of an audit: every row once and in order, and a file that does not fit is refused in a sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from jobs.benchmark.cost import made_up_audit
from volgrowth.analysis.distinct import strongest_rows
from volgrowth.audit.output.result import FINDINGS_FILE, Audit, open_audit
from volgrowth.errors import DamagedError, OutputError
from volgrowth.records import FINDINGS
from volgrowth.report import reading
from volgrowth.storage import sealing
from volgrowth.storage.store import Store

ROWS, SHARD = 2_300, 500
CHOSEN: dict[str, Any] = {"scores": ("growth", "png_bytes"), "findings": ("image_id", "growth", "q_value", "strongest")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """A finished audit of made-up scores, in five shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made_up_audit, "SHARD_ROWS", SHARD)
        patch.setattr(made_up_audit, "HELD_OUT", 700)
        folder = tmp_path_factory.mktemp("made-up") / "audit"
        made_up_audit.make_scores(folder, ROWS)
        made_up_audit.finish_here(folder)
    return open_audit(str(folder / "out"))


@pytest.fixture
def copied(finished: Audit, tmp_path: Path) -> Audit:
    """A copy of it that a test may damage."""
    import shutil

    shutil.copytree(finished.store.url, tmp_path / "out")
    return open_audit(str(tmp_path / "out"))


def rewrite(audit: Audit, table: pa.Table, *sizes: int) -> None:
    """Write findings with row groups of these sizes, the last one of the rest."""
    with patch.object(sealing, "GROUP_ROWS", 1), audit.store.table_writer(FINDINGS_FILE, table.schema, {}) as writer:
        for size in (*sizes, len(table) - sum(sizes)):
            writer.write(table.slice(0, size))
            table = table.slice(size)


@pytest.mark.parametrize("sizes", [(), (SHARD,) * 4, (7, 1200, 900)], ids=["one", "shards", "odd"])
def test_parts_hold_every_row_once_and_in_order(copied: Audit, sizes: tuple[int, ...]) -> None:
    rewrite(copied, copied.findings, *sizes)
    parts = list(copied.parts(**CHOSEN))
    assert [len(part) for part in parts] == [500, 500, 500, 500, 300]
    whole = pa.concat_tables(parts)
    assert whole.column_names == ["row", "image_id", "growth", "q_value", "strongest", "png_bytes"]
    assert whole["png_bytes"].equals(copied.scores["png_bytes"])
    for name in ("row", *CHOSEN["findings"]):
        assert whole[name].equals(copied.findings[name]), name


def test_parts_of_one_table_alone_and_of_held_out_rows(finished: Audit) -> None:
    assert pa.concat_tables(finished.parts(scores=["loss", "row"]))["loss"].equals(finished.scores["loss"])
    assert pa.concat_tables(finished.parts())["row"].equals(finished.scores["row"])
    held = pa.concat_tables(finished.parts(scores=["loss"], findings=["evidence"], held_out=True))
    assert finished.holdout_scores is not None
    assert finished.holdout_findings is not None
    assert held["loss"].equals(finished.holdout_scores["loss"])
    assert held["evidence"].equals(finished.holdout_findings["evidence"])


def test_one_row_of_each_picture_stands_for_it(finished: Audit) -> None:
    for findings in (finished.findings, finished.holdout_findings):
        assert findings is not None
        assert findings["strongest"].null_count == 0
        assert np.array_equal(findings["strongest"].to_numpy(), strongest_rows(findings))
        assert pc.sum(findings["strongest"]).as_py() == len(findings["cluster"].unique())


def test_columns_that_an_older_version_did_not_write_are_null(copied: Audit) -> None:
    rewrite(copied, copied.findings.drop_columns(["strongest", "evidence"]), SHARD)
    table = pa.concat_tables(copied.parts(findings=("strongest", "evidence", "growth")))
    assert table["strongest"].null_count == table["evidence"].null_count == ROWS
    assert table["growth"].equals(copied.findings["growth"])


def first_changed(table: pa.Table, name: str, value: object) -> pa.Table:
    values = table[name].to_pylist()
    place = table.schema.get_field_index(name)
    return table.set_column(
        place, table.schema.field(place), pa.array([value, *values[1:]], table.schema.field(name).type)
    )


DAMAGES: dict[str, tuple[Callable[[Audit], None], type[OutputError], str]] = {
    "rows in another order": (
        lambda audit: rewrite(audit, first_changed(audit.findings, "row", 5)),
        OutputError,
        "are not of the same rows: delete .*_SUCCESS",
    ),
    "a row too few": (
        lambda audit: rewrite(audit, audit.findings.slice(0, ROWS - 1)),
        OutputError,
        f"it has {ROWS - 1} rows, expected {ROWS}.*run the same `volgrowth audit`",
    ),
    "no q_value": (
        lambda audit: rewrite(audit, audit.findings.drop_columns(["q_value"])),
        OutputError,
        "it lacks the column q_value",
    ),
    "a column of another type": (
        lambda audit: rewrite(audit, audit.findings.set_column(2, "growth", pa.array(["high"] * ROWS))),
        DamagedError,
        "findings.parquet is damaged",
    ),
    "a fragment of another schema": (
        lambda audit: audit.store.write_table(
            "scores/part-00003.parquet",
            pa.table({"row": range(1500, 2000), "growth": ["high"] * 500, "png_bytes": ["few"] * 500}),
            {},
        ),
        DamagedError,
        "part-00003.parquet is damaged",
    ),
    "a fragment of other rows": (
        lambda audit: audit.store.write_table(
            "scores/part-00003.parquet", audit.store.read_table("scores/part-00002.parquet"), {}
        ),
        DamagedError,
        "does not hold rows 1500 to 1999, each once",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_tables_that_do_not_fit_are_refused_in_a_sentence(copied: Audit, damage: str) -> None:
    change, error, said = DAMAGES[damage]
    change(copied)
    with pytest.raises(error, match=said):
        list(copied.parts(**CHOSEN))


def test_a_fragment_that_vanishes_while_parts_are_read_is_named(copied: Audit) -> None:
    parts = copied.parts(**CHOSEN)
    next(parts)
    copied.store.delete("scores/part-00003.parquet")
    with pytest.raises(OutputError, match=r"scores/part-00003.parquet is missing or not whole: expected 500 rows"):
        list(parts)


def test_a_bit_of_a_column_that_is_not_read_is_seen_at_the_end(copied: Audit) -> None:
    path = Path(copied.store.path(FINDINGS_FILE))
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedError, match=r"findings.parquet is damaged"):
        list(copied.parts(findings=["strongest"]))


def test_ids_of_a_hundred_kilobytes_come_back(copied: Audit) -> None:
    ids = pa.array([f"{row}" * 25_000 if row % 100 == 99 else "" for row in range(ROWS)], pa.string())
    rewrite(copied, copied.findings.set_column(1, FINDINGS.field("image_id"), ids), SHARD)
    long = [part["image_id"][-1].as_py() for part in copied.parts(findings=["image_id"])]
    assert long == [f"{row}" * 25_000 for row in (499, 999, 1499, 1999, 2299)]


def test_a_lazy_data_set_of_findings_answers_queries(finished: Audit) -> None:
    lazy = finished.findings_dataset()
    import pyarrow.dataset as ds

    flagged = lazy.to_table(["row", "evidence"], filter=ds.field("memorized"))
    assert flagged["row"].equals(finished.findings.filter(finished.findings["memorized"])["row"])
    assert lazy.schema.equals(finished.findings.schema.remove_metadata())
    import polars as pl

    scanned = pl.scan_pyarrow_dataset(lazy).filter(pl.col("memorized")).select("row").collect()
    assert scanned["row"].to_list() == flagged["row"].to_pylist()


def test_a_lazy_data_set_of_a_damaged_file_is_refused(copied: Audit) -> None:
    path = Path(copied.store.path(FINDINGS_FILE))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedError, match=r"findings.parquet is damaged"):
        copied.findings_dataset()


@pytest.mark.parametrize("name", ["check", "curate --list", "report", "check-output"])
def test_no_command_reads_a_whole_table(copied: Audit, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of findings and scores: only Audit's own tables hold all rows, and no command on a large audit asks for them."""

    def whole(self: Audit) -> pa.Table:
        raise AssertionError("the whole table was read")

    monkeypatch.setattr(reading, "WHOLE_ROWS", 1000)
    monkeypatch.setattr(reading, "SAMPLED", 300)
    for table in ("findings", "scores"):
        monkeypatch.setattr(Audit, table, property(whole))
    read = Store.read_batches
    monkeypatch.setattr(Store, "read_batches", lambda self, file, columns=None, most=64: read(self, file, columns, 64))
    made_up_audit.COMMANDS[name]()(copied.store.url)
