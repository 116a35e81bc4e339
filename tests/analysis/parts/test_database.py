"""The database goes on with more memory where it must, and says in a sentence what the machine lacks."""

from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow as pa
import pytest

from volgrowth.analysis.parts import database
from volgrowth.analysis.parts.database import Database, open_database
from volgrowth.errors import OutputError

ROWS, LITTLE = 400_000, 6

GROUPED = "SELECT n % 250000 AS n, count(*) AS rows, max(text) AS text FROM numbers GROUP BY 1 ORDER BY text, n"


def grouped(opened: Database) -> pa.Table:
    numbers = np.arange(ROWS)
    opened.run("CREATE TABLE numbers (n BIGINT, text VARCHAR)")
    opened.add(
        "numbers", pa.table({"n": numbers, "text": [f"a text of some length {n * 7919 % ROWS}" for n in numbers]})
    )
    return pa.concat_tables(opened.batches(GROUPED))


def test_a_query_without_memory_enough_is_run_again_with_more(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_database(0) as opened:
        expected = grouped(opened)
    monkeypatch.setattr(database, "FEW", 0)
    monkeypatch.setattr(database, "MEMORY", LITTLE)
    with open_database(ROWS) as opened:
        assert grouped(opened).equals(expected)
        assert opened.memory > LITTLE


def test_a_machine_without_memory_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "FEW", 0)
    monkeypatch.setattr(database, "MEMORY", LITTLE)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    with (
        open_database(ROWS, "comparison") as opened,
        pytest.raises(OutputError, match="comparison needs more than 6 MiB"),
    ):
        grouped(opened)


def test_a_full_disk_is_a_sentence() -> None:
    with (
        open_database(0) as opened,
        pytest.raises(OutputError, match=r"cannot go on with its temporary files in .*TMPDIR"),
    ):
        opened.run("COPY (SELECT range FROM range(1000000)) TO '/dev/full' (FORMAT csv)")
