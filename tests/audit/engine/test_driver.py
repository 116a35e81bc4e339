"""The engine with a real Ray: several workers, processes that are killed, an audit that is interrupted."""

import os
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import volgrowth as vg
from tests.conftest import volgrowth
from tests.support.held_model import caught, fragments, held_audit
from volgrowth.audit.output.result import Audit
from volgrowth.commands.audit import run_audit
from volgrowth.demo.cases import write_image_parquet
from volgrowth.sources import encode_png

pytestmark = [pytest.mark.ray]


def audit(model: Path, data: object, output: Path, **settings: object) -> Audit:
    config = vg.AuditConfig.build(
        model=str(model), data=str(data), output=str(output), **{"batch_size": 16, "shard_size": 40, **settings}
    )
    return run_audit(config, quiet=True)


def same_scores(one: pa.Table, other: pa.Table, ignore: tuple[str, ...] = ("image_id", "source")) -> None:
    assert one.drop_columns(list(ignore)).equals(other.drop_columns(list(ignore)))


@pytest.fixture(scope="module")
def reference(tiny_model, digit_file, tmp_path_factory):
    """By one worker in this process."""
    return audit(tiny_model, digit_file, tmp_path_factory.mktemp("reference") / "out", engine="local")


def test_an_audit_leaves_every_file_and_every_row(reference, digits):
    assert reference.store.names() == [
        "_SUCCESS",
        "figures",
        "findings.parquet",
        "listing",
        "manifest.json",
        "model-check.json",
        "noise-floor.json",
        "report.html",
        "runs",
        "scores",
        "summary.json",
    ]
    assert reference.scores.column("row").to_pylist() == list(range(150))
    assert set(reference.scores.column("status").to_pylist()) == {"ok"}
    assert reference.findings.num_rows == 150
    rows, footer = reference.store.read_footer("scores/part-00003.parquet")
    assert rows == 30
    assert {"shard", "rows", "config_digest", "attempt", "schema_version"} <= footer.keys()
    assert footer["config_digest"] == reference.manifest["config_digest"]


@pytest.mark.parametrize(
    "settings",
    [{"shard_size": 7, "workers": 2}, {"shard_size": 150, "workers": 1}, {"shard_size": 16, "engine": "local"}],
)
def test_scores_are_the_same_to_the_bit_whatever_the_shards_and_workers(
    ray_session, reference, tiny_model, digit_file, tmp_path, settings
):
    found = audit(tiny_model, digit_file, tmp_path / "out", **settings)
    same_scores(found.scores, reference.scores, ())
    assert found.store.names() == reference.store.names()


def test_every_kind_of_source_gives_the_same_scores(reference, tiny_model, digits, tmp_path):
    import datasets

    encoded = [encode_png(image) for image in digits[:150]]
    features = datasets.Features({"image": datasets.Image()})
    data = datasets.Dataset.from_dict({"image": [{"bytes": b, "path": None} for b in encoded]}, features=features)
    data.save_to_disk(tmp_path / "saved")
    (tmp_path / "images").mkdir()
    for row, content in enumerate(encoded):
        (tmp_path / "images" / f"{row:04d}.png").write_bytes(content)
    for name in ("saved", "images"):
        found = audit(tiny_model, tmp_path / name, tmp_path / f"out-{name}", engine="local")
        same_scores(found.scores, reference.scores)


def test_a_finished_audit_is_left_as_it_is(reference, tiny_model, digit_file):
    folder = Path(reference.store.root)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    audit(tiny_model, digit_file, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_resuming_scores_only_what_is_missing(reference, tiny_model, digit_file, tmp_path):
    out = tmp_path / "out"
    audit(tiny_model, digit_file, out, engine="local")
    (out / "_SUCCESS").unlink()
    (out / "scores/part-00001.parquet").unlink()
    (out / "scores/.part-00003.parquet.abc.part").write_bytes(b"left by a writer that was killed")
    kept = {name: (out / "scores" / name).stat().st_mtime_ns for name in ("part-00000.parquet", "part-00002.parquet")}
    same_scores(audit(tiny_model, digit_file, out, engine="local").scores, reference.scores, ())
    assert {name: (out / "scores" / name).stat().st_mtime_ns for name in kept} == kept


def test_a_damaged_fragment_is_scored_again(reference, tiny_model, digit_file, tmp_path):
    out = tmp_path / "out"
    audit(tiny_model, digit_file, out, engine="local")
    (out / "_SUCCESS").unlink()
    part = out / "scores/part-00001.parquet"
    part.write_bytes(part.read_bytes()[:100])
    same_scores(audit(tiny_model, digit_file, out, engine="local").scores, reference.scores, ())


def test_held_out_rows_are_scored_beside_the_audited_ones(tiny_model, digits, digit_file, tmp_path):
    write_image_parquet(tmp_path / "held.parquet", digits[200:290], [f"held-{row}" for row in range(90)])
    settings = {"holdout": str(tmp_path / "held.parquet"), "id_column": "name", "engine": "local"}
    finished = audit(tiny_model, digit_file, tmp_path / "out", **settings)
    assert finished.holdout_scores is not None
    assert finished.holdout_findings is not None
    assert finished.holdout_scores.num_rows == 90
    assert finished.summary["calibration"]["method"] == "held-out"


def test_rows_that_fail_are_recorded_and_the_rest_is_scored(tiny_model, digits, tmp_path):
    encoded = [encode_png(image) for image in digits[:60]]
    encoded[7], encoded[8] = b"", encoded[8][:40]
    rows = [{"image": {"bytes": content, "path": None}} for content in encoded]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    finished = audit(tiny_model, tmp_path / "d.parquet", tmp_path / "out", engine="local")
    assert finished.summary["counts"] == {
        "rows": 60, "ok": 58, "undecodable": 2, "wrong_shape": 0, "too_large": 0, "non_finite": 0, "wrong_condition": 0,
        "crashed": 0, "timed_out": 0,
    }  # fmt: skip
    assert np.isnan(finished.findings.column("growth").to_numpy()[[7, 8]]).all()


@pytest.fixture
def typed(tmp_path, digit_file):
    """Arguments of an audit in 25 shards, in a folder with its model."""
    return held_audit(tmp_path, digit_file, "--workers", "1")


@pytest.mark.slow
def test_ctrl_c_leaves_a_resumable_audit_and_says_so(typed, tmp_path):
    with caught(typed, tmp_path) as process:
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert "the same command resumes" in errors
    assert "Traceback" not in errors
    assert 0 < fragments(tmp_path) < 25
    resumed = volgrowth(*typed, "--engine", "local", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr


@pytest.mark.slow
def test_another_program_gets_plain_progress_lines(typed, tmp_path):
    finished = volgrowth(*typed, cwd=tmp_path)
    opened, left_aside, scored = finished.stdout.splitlines()[:3]
    assert opened == "opened: 150 rows of 1 parquet file; images from column image"
    assert left_aside == "left aside: nothing"
    assert scored.startswith("150 of 150 images scored; report: ")
    assert "150 of 150 images, " in finished.stderr
    assert "images/s" in finished.stderr
    assert "0 failed" in finished.stderr
    assert "\x1b" not in finished.stderr


def test_gpus_that_are_not_there_are_an_error(ray_session, tiny_model, digit_file, tmp_path):
    from volgrowth.errors import EngineError

    with pytest.raises(EngineError, match="each worker was to have 1 GPUs and Ray sees 0"):
        audit(tiny_model, digit_file, tmp_path / "out", gpus_per_worker=1)
