"""What a finished audit gives to other libraries."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import volgrowth as vg
from volgrowth.audit.output.result import FINDINGS_FILE, Audit
from volgrowth.audit.output.views import facts
from volgrowth.demo.cases import write_image_parquet
from volgrowth.errors import DataError, OutputError, UsageError
from volgrowth.sources import decode_image

FLAGGED = [3, 40, 61]
COPIES = [7, 7, 7, 61]
"""Rows of which copies stand at the end."""
ROWS = 70 + len(COPIES)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()


def small_audit(folder: Path, model: Path, images: np.ndarray) -> Audit:
    """A finished audit of 70 digits and copies of some, three of them flagged, after which no network was asked."""
    train = np.concatenate([images[:70], images[COPIES]])
    write_image_parquet(folder / "train.parquet", train, [f"<b>{row}" for row in range(ROWS)])
    write_image_parquet(folder / "holdout.parquet", images[100:170], [str(row) for row in range(70)])
    data, held, out = (str(folder / name) for name in ("train.parquet", "holdout.parquet", "out"))
    config = vg.AuditConfig.build(
        model=str(model), data=data, holdout=held, output=out, id_column="name", shard_size=50, engine="local",
        measure={"preset": "paper"},
    )  # fmt: skip
    audit = vg.run_audit(config, quiet=True)
    rows = np.isin(np.arange(ROWS), FLAGGED)
    excess = np.where(rows, np.arange(ROWS), -1.0)  # the network knows no image: flags are given to it
    table = audit.findings
    for name, values in {"memorized": rows, "excess_growth": excess}.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(values))
    audit.store.write_table(FINDINGS_FILE, table, {})
    return vg.open_audit(out)


@pytest.fixture(scope="module")
def audit(tiny_model: Path, digits: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return small_audit(tmp_path_factory.mktemp("views"), tiny_model, digits)


def test_one_table_in_three_libraries(audit):
    table, pandas, polars = audit.to_arrow(), audit.to_pandas(), audit.to_polars()
    assert isinstance(pandas, pd.DataFrame)
    assert isinstance(polars, pl.DataFrame)
    assert len(table) == len(pandas) == len(polars) == ROWS
    assert {*audit.findings.column_names, *audit.scores.column_names} == set(table.column_names)
    assert table.column_names == list(pandas.columns) == polars.columns
    assert table.schema.field("source").metadata == audit.scores.schema.field("source").metadata
    assert pandas[pandas.memorized].row.tolist() == FLAGGED
    assert polars.filter(pl.col("memorized"))["row"].to_list() == FLAGGED
    assert pandas.phash.tolist() == polars["phash"].to_list() == audit.scores["phash"].to_pylist()


def test_what_is_missing_stays_missing(audit):
    """Flags of rows without a score select nothing, and whole numbers do not become fractions."""
    pandas = audit.to_pandas()
    assert pandas.verified_hits.isna().all()
    assert pandas.verified_hits.dtype == pd.Int32Dtype()
    from volgrowth.audit.output.views import to_pandas

    few = to_pandas(pa.table({"row": [1, 2], "memorized": [True, None]}))
    assert few[few.memorized].row.tolist() == [1]


def test_findings_of_other_rows_are_refused(audit):
    other = Audit(audit.store, audit.manifest)
    other.__dict__["findings"] = audit.findings.slice(1)
    with pytest.raises(OutputError, match="not of the same rows"):
        other.to_arrow()


def test_polars_is_asked_for_by_name_where_it_is_missing(audit, monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(UsageError, match="pip install polars"):
        audit.to_polars()


def test_flagged_images_highest_excess_first(audit, digits):
    found = audit.flagged()
    assert found["row"] == FLAGGED[::-1]
    assert isinstance(found.features["image"], datasets.Image)
    for row, image in zip(found["row"], found["image"], strict=True):
        np.testing.assert_array_equal(np.asarray(image), digits[row, 0])
    assert found["image_id"] == [f"<b>{row}" for row in found["row"]]
    assert {*audit.findings.column_names, *audit.scores.column_names, "image"} == set(found.column_names)


def test_clusters_group_by_group_the_largest_first(audit):
    found = audit.clusters()
    groups = list(zip(found["cluster"], found["row"], strict=True))
    assert groups[:4] == [(7, 7), (7, 70), (7, 71), (7, 72)]
    assert (61, 61) in groups
    assert (61, 73) in groups
    assert found["copies"] == sorted(found["copies"], reverse=True)
    first = np.asarray(found[0]["image"])
    assert all((np.asarray(found[row]["image"]) == first).all() for row in range(4))


def test_views_are_data_sets_like_any_other(audit, tmp_path):
    """They can be filtered, saved and loaded, and bytes are those of the source."""
    found = audit.flagged().filter(lambda row: row["excess_growth"] > 10)
    found.save_to_disk(str(tmp_path / "flagged"))
    again = datasets.load_from_disk(str(tmp_path / "flagged"))
    assert again["row"] == [61, 40]
    stored = again.cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"]
    original = datasets.Dataset.from_parquet(audit.frozen.data.name, cache_dir=str(tmp_path))
    kept = original.cast_column("image", datasets.Image(decode=False))[61]["image"]["bytes"]
    assert stored == kept
    assert decode_image(stored, (1, 8, 8), 10**6).shape == (1, 8, 8)


def test_without_images_the_data_set_is_not_read(audit, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    data = Path(audit.frozen.data.name)
    moved = data.rename(tmp_path / "elsewhere.parquet")
    try:
        assert audit.flagged(images=False)["row"] == FLAGGED[::-1]
        assert "image" not in audit.clusters(images=False).column_names
        with pytest.raises(DataError, match="train"):
            audit.clusters()
    finally:
        moved.rename(data)


def test_no_flags_are_an_empty_data_set_with_the_same_columns(audit):
    other = Audit(audit.store, audit.manifest)
    flags = pa.array([None] * ROWS, pa.bool_())
    place = audit.findings.schema.get_field_index("memorized")
    other.__dict__["findings"] = audit.findings.set_column(place, audit.findings.schema.field("memorized"), flags)
    assert len(other.flagged()) == len(other.flagged(images=False)) == 0
    assert other.flagged().features == audit.flagged().features


def test_what_was_built_once_is_found_again_and_new_findings_are_seen(audit):
    before = {file["filename"] for file in audit.flagged().cache_files}
    assert {file["filename"] for file in audit.flagged().cache_files} == before
    other = Audit(audit.store, audit.manifest)
    place = audit.findings.schema.get_field_index("verified_hits")
    hits = pa.array([5] * ROWS, pa.int32())
    other.__dict__["findings"] = audit.findings.set_column(place, audit.findings.schema.field("verified_hits"), hits)
    assert other.flagged()["verified_hits"] == [5] * len(FLAGGED)


def put(folder: Path, images: np.ndarray) -> None:
    """Write images of one size as files of one size, and a table with their ids."""
    folder.mkdir(exist_ok=True)
    for row, image in enumerate(images):
        (folder / f"{row:02}.pgm").write_bytes(b"P5 8 8 255\n" + image.tobytes())
    names = [f"{row:02}.pgm,id-{row}" for row in range(len(images))]
    (folder / "metadata.csv").write_text("\n".join(["file_name,name", *names]))


def with_flags(audit: Audit) -> Audit:
    """The same audit with `FLAGGED` rows, of which the network that was audited knows none."""
    table = audit.findings
    place = table.schema.get_field_index("memorized")
    flags = pa.array(np.isin(np.arange(len(table)), FLAGGED))
    audit.store.write_table(FINDINGS_FILE, table.set_column(place, table.schema.field("memorized"), flags), {})
    return vg.open_audit(audit.store.url)


@pytest.mark.parametrize("id_column", ["name", None])
def test_images_are_those_that_were_scored_whatever_the_cache_holds(id_column, tiny_model, digits, tmp_path):
    """Images replaced by others of the same names and sizes are refused, and none is kept and given later."""
    folder, images = tmp_path / "images", digits[[*range(70), *COPIES], 0]
    put(folder, images)
    config = vg.AuditConfig.build(
        model=str(tiny_model), data=str(folder), output=str(tmp_path / "out"), engine="local", id_column=id_column,
        measure={"preset": "paper"},
    )  # fmt: skip
    audit = with_flags(vg.run_audit(config, quiet=True))
    for replaced in (True, False, True):  # before the images are in the cache, and after
        put(folder, 255 - images if replaced else images)
        for look in (audit.flagged, audit.clusters):
            if replaced:
                with pytest.raises(DataError, match=r"hold.* another image than was scored"):
                    look()
                continue
            found = look()
            assert len(found) >= len(FLAGGED)
            assert all((np.asarray(each["image"]) == images[each["row"]]).all() for each in found)
    shutil.rmtree(folder)
    for look in (audit.flagged, audit.clusters):
        with pytest.raises(DataError, match="images"):
            look()


def test_shown_in_a_terminal(audit):
    said = repr(audit)
    assert "\n" not in said
    assert "train.parquet" in said
    assert f"{ROWS} of {ROWS} rows scored" in said
    assert "0 distinct images as memorized" in said
    assert str(audit.store.path("")) in said


def test_where_no_image_was_judged_none_is_said_not_to_be_flagged(audit):
    changed = {**audit.summary, "detection": {**audit.summary["detection"], "tests": 0}}
    assert facts(audit.frozen, changed)["Flagged"] == "none of the images could be judged"


def test_shown_in_a_notebook(audit, monkeypatch):
    text = re.sub("<[^>]*>", " ", audit._repr_html_())
    assert "Memorization audit" in text
    assert "train.parquet" in text
    assert "false-discovery rate of 10% (promised)" in text
    assert 'href="file:///' in audit._repr_html_()
    monkeypatch.chdir(Path(audit.store.path("")).parent)
    assert 'href="out/report.html"' in audit._repr_html_()


def test_names_in_a_notebook_stay_text(audit):
    hostile = "<script>alert(1)</script>"
    changed = {**audit.manifest, "data": {**audit.manifest["data"], "name": hostile, "split": '"><img src=x>'}}
    shown = Audit(audit.store, changed)._repr_html_()
    assert "<script" not in shown
    assert "<img" not in shown
    assert "&lt;script&gt;" in shown


def test_an_unfinished_audit_is_shown_by_its_plan(audit, tmp_path):
    from volgrowth.storage.store import Store

    empty = Audit(Store(str(tmp_path)), audit.manifest)
    assert f"{ROWS} rows" in repr(empty)
    assert "Flagged" not in empty._repr_html_()


def test_opening_an_audit_imports_no_library_of_its_views(audit):
    code = (
        f"import sys, volgrowth as vg; vg.open_audit({audit.store.url!r}); "
        "heavy = {'datasets', 'pandas', 'polars', 'torch'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
