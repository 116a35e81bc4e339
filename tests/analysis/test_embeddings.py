"""Near duplicates by embeddings that the user gives, beside those by perceptual hash."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import volgrowth as vg
from tests.support.samples import dataset, digits, pairs, values, write_folder, write_tar
from volgrowth.analysis import cells
from volgrowth.analysis.duplicates import BY_EMBEDDING, BY_HASH, create_seen, group_duplicates
from volgrowth.analysis.embeddings import open_embeddings
from volgrowth.analysis.parts.database import open_database
from volgrowth.cli import run_command
from volgrowth.commands.audit import audit_lines
from volgrowth.errors import DataError, OutputError
from volgrowth.sources import Source, open_source
from volgrowth.sources.embeddings import read_embeddings

IMAGES = digits(12)
VECTORS: list[Any] = [[1.0, 0.0, float(row)] for row in range(12)]
VECTORS[3], VECTORS[7] = None, [0.0, 0.0, 0.0]


@pytest.fixture(autouse=True, scope="module")
def _own_cache(datasets_cache):
    pass


def found(source: Source, column: str = "e") -> dict[int, np.ndarray]:
    batches = list(read_embeddings(source, column))
    return {int(row): vector for batch in batches for row, vector in zip(*batch, strict=True)}


def in_parquet(folder: Path, column: pa.Array, name: str = "a") -> Source:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": values(IMAGES[: len(column)]), "e": column}), folder / f"{name}.parquet")
    return open_source(str(folder))


def check(embedded: dict[int, np.ndarray], tolerance: float = 1e-6) -> None:
    assert sorted(embedded) == [row for row in range(12) if row not in (3, 7)]
    for row, vector in embedded.items():
        expected = np.array(VECTORS[row]) / np.linalg.norm(VECTORS[row])
        np.testing.assert_allclose(vector, expected, atol=tolerance)


KINDS = {
    "list of floats": pa.list_(pa.float32()),
    "large list of doubles": pa.large_list(pa.float64()),
    "fixed list": pa.list_(pa.float32(), 3),
    "halves": pa.list_(pa.float16()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_of_a_table_is_read_whatever_lists_it_holds(tmp_path, kind):
    rows = [None if row is None else np.array(row, "float16") for row in VECTORS] if kind == "halves" else VECTORS
    check(found(in_parquet(tmp_path, pa.array(rows, KINDS[kind]))), 1e-3 if kind == "halves" else 1e-6)


def test_tables_of_several_files_and_saved_data_sets(tmp_path, monkeypatch):
    monkeypatch.setattr("volgrowth.sources.embeddings.BATCH", 2)
    for name, some in (("a", slice(0, 5)), ("b", slice(5, 12))):
        (tmp_path / "data").mkdir(exist_ok=True)
        table = pa.table({"image": values(IMAGES[some]), "e": pa.array(VECTORS[some], pa.list_(pa.float32()))})
        pq.write_table(table, tmp_path / f"data/{name}.parquet")
    check(found(open_source(str(tmp_path / "data"))))
    dataset(IMAGES, e=VECTORS).cast_column("e", datasets.List(datasets.Value("float32"))).save_to_disk(tmp_path / "s")
    check(found(open_source(str(tmp_path / "s"))))


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_table_beside_image_files_is_read_by_their_names(tmp_path, form):
    write_folder(tmp_path / "d", IMAGES)
    rows = [{"file_name": f"{row:04}.png", "e": vector, "x": 1} for row, vector in enumerate(VECTORS)][::-1]
    rows = [row for row in rows if row["file_name"] != "0003.png"] + [{"file_name": "gone.png", "e": [1.0, 2.0, 3.0]}]
    if form == "jsonl":
        (tmp_path / "d/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d/metadata.parquet")
    check(found(open_source(str(tmp_path / "d"))))
    (tmp_path / "d/metadata.csv").write_text("file_name,e\n0001.png,1\n")  # holds no lists
    check(found(open_source(str(tmp_path / "d"))))
    with pytest.raises(DataError, match=r"has an embedding_column 'other' and a column file_name .* have: .*e"):
        found(open_source(str(tmp_path / "d")), "other")
    again = json.dumps({"file_name": "0000.png", "e": [1.0, 2.0, 3.0]})
    (tmp_path / "d/sub").mkdir()
    (tmp_path / "d/sub/metadata.jsonl").write_text(again.replace("0000", "../0000") + "\n")
    with pytest.raises(DataError, match=r"has a second row for 0000\.png: leave one"):
        found(open_source(str(tmp_path / "d")))


BAD = {
    "ragged": ([[1.0, 2.0], [1.0]], pa.list_(pa.float32()), "row 1 of column e of .* has 1 numbers, and others 2"),
    "NaN": ([[1.0, 2.0], [float("nan"), 1.0]], pa.list_(pa.float32()), "row 1 .* holds a value that is no finite numb"),
    "infinite": ([[float("inf"), 2.0]], pa.list_(pa.float64()), "row 0 .* no finite number"),
    "null within": ([[1.0, None]], pa.list_(pa.float64()), "row 0 .* no finite number"),
    "empty": ([[]], pa.list_(pa.float64()), "row 0 .* has 0 numbers"),
    "integers": (
        [[1, 2]],
        pa.list_(pa.int64()),
        "column e of .* holds list<.*int64>: expected a list of finite floats",
    ),
    "numbers": ([1.0], pa.float64(), "holds double: expected a list of finite floats"),
    "text": (["1 2"], pa.string(), "holds string: expected a list of finite floats"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_embedding_is_refused(tmp_path, what):
    rows, kind, said = BAD[what]
    with pytest.raises(DataError, match=said):
        found(in_parquet(tmp_path, pa.array(rows, kind)))


def test_files_that_differ_and_kinds_without_columns_are_refused(tmp_path):
    in_parquet(tmp_path / "d", pa.array([[1.0, 2.0]], pa.list_(pa.float32())))
    source = in_parquet(tmp_path / "d", pa.array([[1.0]], pa.list_(pa.float32())), "b")
    with pytest.raises(DataError, match=r"row 1 of column e of .*b\.parquet has 1 numbers, and rows before it 2"):
        found(source)
    with pytest.raises(DataError, match="has no embedding_column 'gone': it has image, e"):
        found(source, "gone")
    write_tar(tmp_path / "a.tar", pairs(IMAGES))
    with pytest.raises(DataError, match="the data set is of the kind webdataset, which has no columns"):
        found(open_source(str(tmp_path / "a.tar")))


def groups(
    folder: Path, vectors: np.ndarray, hashes: list[int | None], similarity: float = 0.9
) -> list[dict[str, Any]]:
    """The members of images that have these embeddings and hashes, each with content of its own."""
    folder.mkdir(exist_ok=True)
    images = (digits(1) * len(vectors))[: len(vectors)]
    pq.write_table(pa.table({"image": values(images), "e": list(vectors.astype("float32"))}), folder / "a.parquet")
    rows, some = np.arange(len(vectors)), [None if each is None else 0 for each in hashes]
    with (
        open_embeddings(open_source(str(folder)), "e", similarity) as embeddings,
        open_database(len(vectors)) as database,
    ):
        create_seen(database)
        looks = {"brightness": pa.array(some, pa.int16()), "contrast": pa.array(some, pa.int16())}
        known = {"row": rows, "scored": rows >= 0, "content": pa.array(rows + 100, pa.uint64())}
        database.add("seen", pa.table({**known, "phash": pa.array(hashes, pa.uint64()), **looks}))
        group_duplicates(database, embeddings)
        return database.table("SELECT row, cluster, copies, rule FROM members ORDER BY row").to_pylist()


def test_groups_by_hash_are_joined_by_embeddings(tmp_path):
    """Rows 0 and 1 are alike by hash, 2 and 3 too; 2, which leads, is near to 0 by embedding; 4 has no hash."""
    vectors = np.array([[1, 0], [0, 1], [1, 0.1], [-1, 0], [1, 0.05], [-1, -1], [0, -1.0]])
    apart = [0, 0, 2**40 - 1, 2**40 - 1, None, 2**20 - 1, 2**64 - 2**48]
    members = {each["row"]: each for each in groups(tmp_path, vectors, apart)}
    assert sorted(members) == [0, 1, 2, 3, 4]
    assert {each["cluster"] for each in members.values()} == {0}
    assert {each["copies"] for each in members.values()} == {5}
    assert [members[row]["rule"] for row in range(5)] == [BY_HASH, BY_HASH, *[BY_EMBEDDING] * 3]


def test_a_row_between_two_others_does_not_chain_them(tmp_path):
    angles = np.deg2rad([0, 20, 40, 60])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert [each["cluster"] for each in groups(tmp_path, vectors, [None] * 4, np.cos(np.deg2rad(25)))] == [0, 0, 2, 2]


def test_groups_are_those_of_the_families_and_repeat(tmp_path, monkeypatch):
    """600 directions with up to three near copies each, in many cells."""
    monkeypatch.setattr(cells, "FEW", 64)
    random = np.random.default_rng(0)
    centres = random.normal(size=(600, 32))
    owner = np.sort(random.integers(0, 600, 1500))
    vectors = centres[owner] + 0.05 * random.normal(size=(1500, 32))
    expected = {
        row: int(np.flatnonzero(owner == owner[row])[0]) for row in range(1500) if (owner == owner[row]).sum() > 1
    }
    members = groups(tmp_path, vectors, [None] * 1500)
    assert {each["row"]: each["cluster"] for each in members} == expected
    assert groups(tmp_path, vectors, [None] * 1500) == members


@pytest.mark.parametrize("free", [0, 12 * 300])
def test_a_full_disk_is_said_before_it_is_written_to(tmp_path, monkeypatch, free):
    """Of 12 rows 300 bytes each, beside their vectors, are too few; that none is free is known before one is read."""
    source = in_parquet(tmp_path / "d", pa.array(VECTORS, pa.list_(pa.float32())))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    said = r"the embeddings of 12 rows take up to [\d,]+ bytes of temporary files, and .* has room for .*TMPDIR"
    with pytest.raises(OutputError, match=said), open_embeddings(source, "e", 0.95):
        pass


def test_an_audit_tells_of_embeddings_and_of_rows_without(tiny_model, tmp_path, capsys):
    """Digit 5 under another look has the embedding of digit 2; a third of the rows has none."""
    distinct = digits(40)
    random = np.random.default_rng(0)
    vectors = [vector if row % 3 else None for row, vector in enumerate(random.normal(size=(40, 8)).tolist())]
    vectors[5] = vectors[2]
    (tmp_path / "d").mkdir()
    table = pa.table({"image": values(distinct), "e": pa.array(vectors, pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "d/a.parquet")
    given = {"model": str(tiny_model), "data": str(tmp_path / "d"), "engine": "local"}

    def run(out: str, **settings: Any) -> vg.Audit:
        return vg.run_audit(vg.AuditConfig.build(**given, output=str(tmp_path / out), **settings), quiet=True)

    audit, plain = run("out", embedding_column="e"), run("plain")
    lone = audit.findings["duplicate_rule"].is_null().to_pylist()
    assert [row for row in range(40) if not lone[row]] == [2, 5]
    assert audit.findings["cluster"].to_pylist()[5] == 2
    assert audit.findings["duplicate_rule"].to_pylist()[5] == BY_EMBEDDING
    assert plain.findings["duplicate_rule"].null_count == 40
    told = {"column": "e", "similarity": 0.95, "dimension": 8, "rows": 26, "rows_without": 14, "joined_groups": 1}
    told |= {"shared_cells": 1.0, "undecided_groups": 0}
    assert audit.summary["duplicates"]["embeddings"] == told
    assert "embeddings" not in plain.summary["duplicates"]
    assert "14 of 40 rows have no embedding in column e" in " ".join(audit.summary["run"]["warnings"])
    assert "by column e, from a cosine of 0.95 on" in (tmp_path / "out/report.html").read_text()
    assert audit_lines(audit)
    assert "embedding_column" not in plain.manifest["config"]  # so that older outputs can be resumed
    assert plain.scores["growth"].equals(audit.scores["growth"])
    run("out", embedding_column="e")
    with pytest.raises(OutputError, match="embedding"):
        run("out", embedding_column="e", embedding_similarity=0.9)


def test_a_missing_column_ends_the_command_with_a_sentence(tiny_model, tmp_path, capsys):
    in_parquet(tmp_path / "d", pa.array(VECTORS, pa.list_(pa.float32())))
    command = ["audit", str(tiny_model), str(tmp_path / "d"), "--output", str(tmp_path / "out"), "--embedding-column"]
    assert run_command([*command, "gone"]) == 2
    assert "has no embedding_column 'gone': it has image, e; name one of them" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
