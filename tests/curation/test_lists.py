"""Lists as files: written, edited, read, and refused."""

import csv
import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.curation.conftest import ROWS
from tests.support.samples import write_parquet
from volgrowth.analysis.deciding import make_list
from volgrowth.analysis.policy import CURATION, CurationPolicy, list_digest
from volgrowth.audit.output.result import Audit
from volgrowth.commands.curate import curate_audit
from volgrowth.curation import CURATION_FILE, read_list
from volgrowth.curation.lists import encode_list
from volgrowth.errors import OutputError, UsageError
from volgrowth.sources import open_source


@pytest.fixture(scope="module")
def made(parquet):
    return make_list(parquet, CurationPolicy("top_k", 4, "downweight"))


def edit(file: Path, **changes: object) -> None:
    """Change row 5 of a CSV as a script would that knows nothing of volgrowth."""
    with open(file, newline="") as lines:
        rows = list(csv.DictReader(lines))
    for name, value in changes.items():
        if value is None:
            rows = [{key: kept for key, kept in row.items() if key != name} for row in rows]
        else:
            rows[5][name] = str(value)
    with open(file, "w", newline="") as lines:
        writer = csv.DictWriter(lines, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_a_list_is_read_as_it_was_written(parquet, made, tmp_path, name):
    (tmp_path / name).write_bytes(encode_list(made, name))
    assert read_list(parquet, str(tmp_path / name)).equals(made)


def test_texts_that_are_hard_on_csv_survive(parquet, made, tmp_path):
    odd = ['a "quoted", one', "line\nbreak", "NA", "", "007", "=1+1", "# no", "née 🎈"]
    table = made.set_column(2, CURATION.field("source"), pa.array((odd * 9)[:ROWS]))
    (tmp_path / "list.csv").write_bytes(encode_list(table, "list.csv"))
    assert read_list(parquet, str(tmp_path / "list.csv")).equals(table)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_list_that_went_through_a_data_frame_is_read(parquet, made, tmp_path, suffix):
    """Sorted, a row changed, columns added and taken out, and no metadata."""
    frame = made.to_pandas().sort_values("excess_growth")
    frame.loc[5, ["action", "weight", "reason"]] = ["drop", 1.0, "mine"]
    frame = frame.drop(columns=["p_value", "cluster"]).assign(note="looked at")
    file = tmp_path / f"list.{suffix}"
    if suffix == "csv":
        frame.to_csv(file, index=False)
    else:
        frame.to_parquet(file)
    found = read_list(parquet, str(file))
    assert found.schema.equals(CURATION)
    assert found["row"].to_pylist() == list(range(ROWS))
    assert (found["action"][5].as_py(), found["reason"][5].as_py()) == ("drop", "mine")
    assert found["p_value"].null_count == ROWS
    assert found["source"].equals(made["source"])


def test_lists_that_are_refused(parquet, made, tmp_path):
    file = tmp_path / "list.csv"
    for changes, kind, message in (
        ({"action": "burn"}, UsageError, r"row 5: action is 'burn': expected keep, drop, downweight or review"),
        ({"action": ""}, UsageError, r"row 5: action is ''"),
        ({"action": "downweight", "weight": 0}, UsageError, r"row 5: action is downweight and weight 0\.0"),
        ({"action": "downweight", "weight": ""}, UsageError, r"row 5: action is downweight and weight None"),
        ({"action": "keep", "weight": 0.5}, UsageError, r"row 5: action is keep and weight 0\.5: expected 1, or"),
        ({"image_id": "6"}, UsageError, r"row 5: image_id is '6' and was '5': put it back"),
        ({"row": 6}, OutputError, rf"has {ROWS} rows: expected every row from 0 to {ROWS - 1} once"),
        ({"audit": "0123"}, OutputError, r"is of another audit \(0123 in its column audit"),
        ({"weight": None}, OutputError, r"has no column weight: put it back"),
        ({"row": "five"}, OutputError, r"cannot be read \(.*five"),
    ):
        file.write_bytes(encode_list(made, "list.csv"))
        edit(file, **changes)
        with pytest.raises(kind, match=message):
            read_list(parquet, str(file))
    lines = encode_list(made, "list.csv").splitlines(keepends=True)
    for content, message in (
        (b"".join(lines[:-1]), f"has {ROWS - 1} rows: expected every row"),
        (lines[0], "is of another audit .none in its column"),
        (b"", "cannot be read"),
        (b"PAR1", "cannot be read|has no column"),
    ):
        file.write_bytes(content)
        with pytest.raises(OutputError, match=message):
            read_list(parquet, str(file))
    (tmp_path / "list.parquet").write_bytes(b"PAR1")
    with pytest.raises(OutputError, match="cannot be read"):
        read_list(parquet, str(tmp_path / "list.parquet"))
    with pytest.raises(UsageError, match=r"ends in \.parquet or \.csv"):
        read_list(parquet, str(tmp_path / "list.txt"))


def test_a_list_is_of_its_audit_only(parquet, folder, tmp_path):
    curate_audit(folder.store.url, CurationPolicy("top_k", 2), list_path=str(tmp_path / "list.csv"))
    with pytest.raises(
        OutputError, match=rf"of another audit \({list_digest(folder)} in its .* is {list_digest(parquet)}"
    ):
        curate_audit(parquet.store.url, list_path=str(tmp_path / "list.csv"), destination=str(tmp_path / "new"))
    assert os.listdir(tmp_path) == ["list.csv"]


def test_a_list_is_kept_in_the_audit_and_a_file_with_another_is_not_replaced(parquet, tmp_path):
    out, file = Path(parquet.store.url), tmp_path / "list.csv"
    table, applied = curate_audit(str(out), CurationPolicy("top_k", 2, "dedupe"), list_path=str(file))
    assert applied is None
    assert pq.read_table(out / CURATION_FILE).equals(table)
    metadata = pq.read_metadata(out / CURATION_FILE).metadata
    assert (metadata[b"schema_version"], metadata[b"policy"]) == (b"1", b"top_k 2, dedupe")
    curate_audit(str(out), CurationPolicy("top_k", 2, "dedupe"), list_path=str(file))  # the same list
    edit(file, action="drop")
    content = file.read_bytes()
    with pytest.raises(OutputError, match=r"list\.csv exists and holds another list, .*leave the policy out"):
        curate_audit(str(out), CurationPolicy("top_k", 2, "dedupe"), list_path=str(file))
    assert file.read_bytes() == content
    table, applied = curate_audit(str(out), list_path=str(file), destination=str(tmp_path / "new"))
    assert applied is not None
    assert table["action"][5].as_py() == "drop"
    assert pq.read_table(out / CURATION_FILE).equals(table)
    assert len(pq.read_table(tmp_path / "new")) == applied.rows
    with pytest.raises(UsageError, match="neither a policy nor a list"):
        curate_audit(str(out))
    with pytest.raises(OutputError, match=r"gone\.csv cannot be read"):
        curate_audit(str(out), list_path=str(tmp_path / "gone.csv"))


def test_a_list_from_before_an_extension_is_of_another_audit(run, images, tmp_path):
    write_parquet(tmp_path / "data/a.parquet", images)
    audit = run(tmp_path / "data", tmp_path / "out")
    write_parquet(tmp_path / "data/b.parquet", images[:5])
    grown = audit.frozen.data.extended(open_source(str(tmp_path / "data")).listing)
    assert list_digest(Audit(audit.store, replace(audit.frozen, data=grown).to_json())) != list_digest(audit)


@pytest.mark.parametrize(
    "cell", ["=1+1", "+1", "-3", "@SUM(A1)", "\t=1", "\r=1", "＝1", "'=1", "''-3", "'quoted'", "a=b"]
)
def test_cells_that_a_spreadsheet_would_evaluate_are_quoted_and_read_back(parquet, made, tmp_path, cell):
    table = made.set_column(2, CURATION.field("source"), pa.array([cell] * ROWS))
    file = tmp_path / "list.csv"
    file.write_bytes(encode_list(table, "list.csv"))
    with open(file, newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert not any(row["source"].startswith(("=", "+", "-", "@", "\t", "\r", "＝")) for row in rows)
    assert any(row["excess_growth"].startswith("-") for row in rows), "a number stays a number"
    assert read_list(parquet, str(file)).equals(table)
