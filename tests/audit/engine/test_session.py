"""What both engines share, shown with the one that needs no Ray: it starts at once."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import volgrowth as vg
from volgrowth.audit.engine.progress import AuditProgress
from volgrowth.audit.output.result import Audit
from volgrowth.audit.output.runs import Run
from volgrowth.audit.scoring import worker
from volgrowth.audit.scoring.pilot import PilotWorker
from volgrowth.audit.scoring.worker import ScoringWorker
from volgrowth.cli import run_command
from volgrowth.commands.audit import run_audit
from volgrowth.demo.cases import write_image_parquet
from volgrowth.errors import EngineError, OutputError, UsageError
from volgrowth.storage.store import Store

# fails at white images, unless the world is mended
MODEL = """
import os
import volgrowth as vg

class Picky(vg.GaussianDenoiser):
    image_shape = (1, 8, 8)

    def noise(self, y, noise_level):
        if (y.flatten(1).mean(1) > 0.95).any() and not os.environ.get("MENDED"):
            raise ArithmeticError("white is no colour")
        return super().noise(y, noise_level)

def make(device, dtype):
    return Picky(0.0, 0.3)
"""


def audit(model: object, data: object, output: object, extend: bool = False, retry: bool = False, **more: Any) -> Audit:
    settings = {"engine": "local", "batch_size": 16, "shard_size": 40, **more}
    config = vg.AuditConfig.build(model=str(model), data=str(data), output=str(output), **settings)
    return run_audit(config, quiet=True, extend=extend, retry_failed=retry)


def fragments(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(output).glob("scores/*.parquet"))}


@pytest.fixture
def picky(tmp_path, monkeypatch):
    (tmp_path / "picky_model.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    yield "factory:picky_model:make"
    sys.modules.pop("picky_model", None)


FEW_LEVELS = {"preset": "volume", "num_levels": 3}


@pytest.fixture(scope="module")
def reference(tiny_model, digit_file, tmp_path_factory):
    return audit(tiny_model, digit_file, tmp_path_factory.mktemp("reference") / "out")


@pytest.fixture
def white(digits, tmp_path):
    """80 digits, three of them painted white."""
    images = digits[:80].copy()
    images[[5, 41, 42]] = 255
    write_image_parquet(tmp_path / "white.parquet", images, [str(row) for row in range(80)])
    return tmp_path / "white.parquet"


@pytest.mark.ray
def test_it_leaves_the_bytes_that_ray_leaves(ray_session, reference, tiny_model, digit_file, tmp_path):
    audit(tiny_model, digit_file, tmp_path / "out", engine="ray")
    assert fragments(tmp_path / "out") == fragments(Path(reference.store.root))


@pytest.mark.ray
def test_two_calls_at_a_time_as_beside_a_gpu_leave_the_same_bytes(
    ray_session, reference, tiny_model, digit_file, tmp_path, monkeypatch
):
    monkeypatch.setattr("volgrowth.audit.engine.driver.calls_at_once", lambda share: 2)
    audit(tiny_model, digit_file, tmp_path / "out", engine="ray", workers=1)
    assert fragments(tmp_path / "out") == fragments(Path(reference.store.root))


def test_a_shard_is_decoded_while_another_one_is_at_the_device(reference, tiny_model, digit_file, tmp_path):
    """As an actor beside a GPU does it: what is published is the same, and only one thread launches at a time."""
    finished = audit(tiny_model, digit_file, tmp_path / "out")
    before = fragments(tmp_path / "out")
    config = vg.AuditConfig.build(**finished.manifest["config"], output=str(tmp_path / "out"))
    worker = ScoringWorker(config, finished.frozen, "cpu")
    worker.prepare()
    first, second, *_ = finished.frozen.shards
    decoded, begun, launched = threading.Event(), threading.Event(), list[int]()
    scorer: Any = worker.scorer
    prepare, launch = scorer.prepare, scorer._launch

    def noted_prepare(rows, failures):
        if rows[0].row >= second.start:
            decoded.set()
        return prepare(rows, failures)

    def noted_launch(items):
        begun.set()
        assert decoded.wait(60)  # rows of the second, while the first has the device
        launched.append(items[0].row)
        return launch(items)

    scorer.prepare, scorer._launch = noted_prepare, noted_launch
    worker.attempt = 7  # of this thread, and not of theirs
    crew = [threading.Thread(target=worker.score, args=(shard, None, {})) for shard in (first, second)]
    crew[0].start()
    assert begun.wait(60)
    crew[1].start()
    for thread in crew:
        thread.join(60)
    assert launched == sorted(launched)
    assert fragments(tmp_path / "out") == before


def test_a_late_writer_writes_what_is_there(reference, tiny_model, digit_file, tmp_path):
    finished = audit(tiny_model, digit_file, tmp_path / "out")
    before = fragments(tmp_path / "out")
    config = vg.AuditConfig.build(**finished.manifest["config"], output=str(tmp_path / "out"))
    zombie = ScoringWorker(config, finished.frozen, "cpu")
    zombie.prepare()
    for shard in finished.frozen.shards:
        zombie.score(shard, None, {})
    assert fragments(tmp_path / "out") == before


def test_rows_that_raise_are_found_and_recorded(picky, white, tmp_path):
    found = audit(picky, white, tmp_path / "out")
    crashed = found.scores.filter(pa.compute.equal(found.scores["status"], "crashed"))
    assert crashed["row"].to_pylist() == [5, 41, 42]
    (error,) = set(crashed["error"].to_pylist())
    assert re.fullmatch(r"ArithmeticError: white is no colour at .*/picky_model\.py, line \d+", error)
    assert crashed["image_id"].null_count == 0
    assert found.summary["counts"]["ok"] == 77
    assert found.summary["run"]["retries"] > 6


def test_failed_rows_are_scored_again_when_asked(picky, white, tmp_path, monkeypatch):
    out = tmp_path / "out"
    audit(picky, white, out)
    monkeypatch.setenv("MENDED", "1")
    assert audit(picky, white, out).summary["counts"]["crashed"] == 3
    mended = audit(picky, white, out, retry=True)
    assert mended.summary["counts"]["ok"] == 80
    assert mended.scores.equals(audit(picky, white, tmp_path / "undisturbed").scores)
    assert mended.summary["run"]["runs"] == 2
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    audit(picky, white, out, retry=True)  # nothing failed: nothing is done
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times


def test_when_everything_fails_it_stops_with_the_reason(picky, digits, tmp_path, monkeypatch):
    write_image_parquet(tmp_path / "all.parquet", np.full_like(digits[:80], 255), [str(row) for row in range(80)])
    with pytest.raises(EngineError, match=r"5 rows failed, .*white is no colour"):
        audit(picky, tmp_path / "all.parquet", tmp_path / "out")
    monkeypatch.setenv("MENDED", "1")
    assert audit(picky, tmp_path / "all.parquet", tmp_path / "out").summary["counts"]["ok"] == 80


def test_a_data_set_that_gained_files_is_extended_when_asked(reference, tiny_model, digits, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    names = [f"digit-{row:04d}" for row in range(150)]
    write_image_parquet(data / "b.parquet", digits[:70], names[:70])
    audit(tiny_model, data, tmp_path / "out")
    first = fragments(tmp_path / "out")
    write_image_parquet(data / "a.parquet", digits[70:150], names[70:])
    with pytest.raises(OutputError, match=r"gained 1\. Repeat the command with --extend"):
        audit(tiny_model, data, tmp_path / "out")
    grown = audit(tiny_model, data, tmp_path / "out", extend=True)
    assert grown.scores["row"].to_pylist() == list(range(150))
    # the later file comes after the first, whatever its name, so these are the rows of the reference
    assert grown.scores["growth"].equals(reference.scores["growth"])
    assert grown.findings.num_rows == 150
    assert first.items() <= fragments(tmp_path / "out").items()
    before = fragments(tmp_path / "out")
    audit(tiny_model, data, tmp_path / "out")
    assert fragments(tmp_path / "out") == before
    write_image_parquet(data / "a.parquet", digits[70:149], names[70:149])
    with pytest.raises(OutputError, match="a data set may gain files and lose none"):
        audit(tiny_model, data, tmp_path / "out", extend=True)


def test_an_object_store_holds_model_data_and_output(reference, tiny_model, digit_file, bucket):
    bucket.upload(tiny_model, "model")
    bucket.upload(digit_file.parent, "data")
    found = audit(f"{bucket.url}/model", f"{bucket.url}/data/{digit_file.name}", f"{bucket.url}/out")
    assert found.scores.drop_columns(["source"]).equals(reference.scores.drop_columns(["source"]))
    assert "out/_SUCCESS" in bucket.objects()
    assert "out/.driver.json" not in bucket.objects()
    times = {key: data for key, data in bucket.objects().items() if key.startswith("out/")}
    audit(f"{bucket.url}/model", f"{bucket.url}/data/{digit_file.name}", f"{bucket.url}/out")
    assert {key: data for key, data in bucket.objects().items() if key.startswith("out/")} == times


@pytest.mark.parametrize("kind", ["cut", "lost", "broken", "busy"])
def test_writes_that_fail_half_way_are_done_again(reference, tiny_model, digit_file, bucket, proxy, kind):
    fault = proxy.fail(kind, method="PUT", path="scores/part-0000[13]", times=3)
    found = audit(tiny_model, digit_file, f"{bucket.url}/out")
    assert fault.hits >= 3
    assert found.scores.equals(reference.scores)


@pytest.mark.parametrize(("kind", "said"), [("expired", "credentials"), ("denied", "Access Denied.*renew")])
def test_credentials_that_end_in_mid_run_stop_it_and_it_resumes(
    reference, tiny_model, digit_file, bucket, proxy, kind, said
):
    proxy.fail(kind, method="PUT", path="scores/", after=2)
    with pytest.raises(OutputError, match=said):
        audit(tiny_model, digit_file, f"{bucket.url}/out")
    proxy.heal()
    assert len([key for key in bucket.objects() if key.startswith("out/scores/")]) == 2
    assert audit(tiny_model, digit_file, f"{bucket.url}/out").scores.equals(reference.scores)


LIMITED = """
import resource, sys
from volgrowth.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))
main(sys.argv[1:])
"""


def test_a_full_disk_stops_it_and_it_resumes(reference, tiny_model, digit_file, tmp_path):
    command = ["audit", tiny_model, digit_file, "--output", tmp_path / "out", "--engine", "local"]
    command += ["--shard-size", "40", "--set", "batch_size=16", "--trust-model"]
    process = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, command)], capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    assert "cannot be written (File too large)" in process.stderr
    assert "Traceback" not in process.stderr
    assert not [name for name in os.listdir(tmp_path / "out/scores") if name.startswith("part")]
    assert run_command([*map(str, command)]) == 0
    assert vg.open_audit(str(tmp_path / "out")).scores.equals(reference.scores)


def test_a_log_follows_nothing_but_a_log(tmp_path):
    """Before, `--log-json OUT/manifest.json` ended the audit's manifest, and a log after a data file ended that."""
    store, log = Store(str(tmp_path)), tmp_path / "log"
    other = tmp_path / "manifest.json"
    other.write_text("{}")
    with pytest.raises(UsageError, match=r"manifest.json is there, and is no log of an audit: give a new file"):
        Run(store, str(other))
    assert other.read_text() == "{}"
    for lines in (2, 4):
        with Run(store, str(log)):
            pass
        assert len(log.read_text().splitlines()) == lines
    with Run(store, os.devnull):
        pass


def test_what_happened_is_logged_for_machines(tiny_model, digit_file, tmp_path):
    finished = audit(tiny_model, digit_file, tmp_path / "out", log_json=str(tmp_path / "log"))
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [event["event"] for event in events] == [
        "started",
        "model_check",
        "shard",
        "self_check",
        *["shard"] * 3,
        "ended",
    ]
    assert [event["images"] for event in events if event["event"] == "shard"] == [40, 40, 40, 30]
    assert events[-1]["images"] == 150
    assert events[-1]["evaluations"] == finished.summary["run"]["evaluations"] == 150 * 4
    run = finished.summary["run"]
    assert run["device_hours"] <= run["seconds"] / 3600
    assert 0 <= run["decode_share"] < 1
    assert run["workers"] == run["runs"] == 1


def test_the_noise_floor_is_measured_and_small(reference):
    floor = reference.summary["run"]["noise_floor"]
    assert floor["rows"] == 8
    growth = np.abs(reference.scores["growth"].to_numpy()).max()
    assert floor["batch"] <= 1e-5 * growth
    assert 0 < floor["dtype"] <= 1e-3 * growth


def test_the_arithmetic_is_said(reference):
    run = reference.summary["run"]
    found = run["arithmetic"]
    assert (found["dtype"], found["tf32"], found["channels_last"]) == (["float32"], [], False)
    assert found["launch"] == "operation by operation"
    assert run["device_names"] == [found["device"]]
    said = "products in float32, TF32 nowhere, flash attention, channels first, launched operation by operation"
    assert f"{said} (observed on {found['device']})" in page(reference)


def test_a_noise_floor_that_cannot_be_measured_is_tried_once_and_said(tiny_model, digit_file, tmp_path, monkeypatch):
    tried = []

    def broken(worker, shard):
        tried.append(shard.name)
        raise ArithmeticError("no float64 here")

    monkeypatch.setattr(ScoringWorker, "noise_floor", broken)
    finished = audit(tiny_model, digit_file, tmp_path / "out", log_json=str(tmp_path / "log"))
    assert tried == ["scores/part-00000.parquet"]
    problem = finished.summary["run"]["noise_floor"]["problem"]
    assert re.fullmatch(r"ArithmeticError: no float64 here at .*/test_session\.py, line \d+", problem)
    assert "not finished: ArithmeticError: no float64 here" in finished.summary["run"]["warnings"][0]
    assert "not measured: ArithmeticError: no float64 here" in page(finished)
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [event["problem"] for event in events if event["event"] == "self_check"] == [problem]
    (tmp_path / "out/_SUCCESS").unlink()
    (tmp_path / "out/scores/part-00001.parquet").unlink()
    audit(tiny_model, digit_file, tmp_path / "out")
    assert len(tried) == 1


def test_a_derivative_that_cannot_be_checked_costs_no_noise_floor(tiny_model, digit_file, tmp_path, monkeypatch):
    def load(worker, dtype):
        if dtype != "bfloat16":
            raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB\nmore")
        return plainly(worker, dtype)

    plainly = ScoringWorker.load
    monkeypatch.setattr(ScoringWorker, "load", load)
    finished = audit(tiny_model, digit_file, tmp_path / "out", dtype="bfloat16", measure=FEW_LEVELS)
    floor = finished.summary["run"]["noise_floor"]
    assert floor["batch"] is not None
    assert floor["dtype"] is floor["derivative"] is None
    assert floor["problem"].startswith("derivatives could not be checked (RuntimeError: CUDA out of memory")


def test_derivatives_are_checked_against_differences(tiny_model, digit_file, tmp_path, reference):
    assert reference.summary["run"]["noise_floor"]["derivative"] is None  # forward passes have none
    assert reference.summary["run"]["warnings"] == []
    assert "central differences" not in page(reference)
    finished = audit(tiny_model, digit_file, tmp_path / "out", measure=FEW_LEVELS)
    check = finished.summary["run"]["noise_floor"]["derivative"]
    assert check["images"] == 8
    assert 0 < check["deviation"] < check["tolerance"] == 0.01
    assert (check["used"], check["against"]) == ("backward passes", "float64")
    assert finished.summary["run"]["warnings"] == []
    assert "backward passes, &lt;0.1% from central differences in float64 (8 images)" in page(finished)


def page(finished: Audit) -> str:
    return finished.store.read("report.html").decode()


# what has no derivative, and what hides it
ODD_MODELS = """
import numpy as np
import torch
import volgrowth as vg

class Numpy(vg.GaussianDenoiser):
    image_shape = (1, 8, 8)

    def noise(self, y, noise_level):
        return torch.from_numpy(np.copy(super().noise(y, noise_level).numpy()))

class Detached(vg.GaussianDenoiser):
    image_shape = (1, 8, 8)

    def noise(self, y, noise_level):
        return super().noise(y.detach(), noise_level)

class Rounded(vg.GaussianDenoiser):
    image_shape = (1, 8, 8)

    def noise(self, y, noise_level):
        return (super().noise(y, noise_level) * 1e4).round() / 1e4

def without(device, dtype):
    return Numpy(0.0, 0.3)

def detached(device, dtype):
    return Detached(0.0, 0.3)

def hidden(device, dtype):
    return Rounded(0.0, 0.3)

def plain(device, dtype):
    denoiser = vg.GaussianDenoiser(0.0, 0.3)
    denoiser.image_shape = (1, 8, 8)
    return denoiser
"""


@pytest.fixture
def odd(tmp_path, monkeypatch):
    (tmp_path / "odd_models.py").write_text(ODD_MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda name: f"factory:odd_models:{name}"
    sys.modules.pop("odd_models", None)


def test_a_network_without_a_derivative_is_measured_by_differences_and_the_report_says_so(odd, digit_file, tmp_path):
    found, known = (audit(odd(name), digit_file, tmp_path / name, measure=FEW_LEVELS) for name in ("without", "plain"))
    np.testing.assert_allclose(found.scores["growth"].to_numpy(), known.scores["growth"].to_numpy(), rtol=2e-3)
    check = found.summary["run"]["noise_floor"]["derivative"]
    assert check["used"] == "central differences"
    assert check["deviation"] < check["tolerance"]
    (warning,) = found.summary["run"]["warnings"]
    assert warning.startswith("The network has no derivative (")
    assert warning in found.summary["detection"]["warnings"]
    assert "rests on differences in float32" in page(found)
    assert known.summary["run"]["warnings"] == []


def test_a_derivative_that_an_operation_hides_is_warned_of(odd, digit_file, tmp_path):
    found = audit(odd("hidden"), digit_file, tmp_path / "out", measure=FEW_LEVELS)
    (warning,) = found.summary["run"]["warnings"]
    assert "differ from central differences" in warning
    assert "round and detach" in warning
    assert "round and detach" in page(found)


def test_a_batch_size_is_searched_once_and_kept(tiny_model, digit_file, tmp_path, monkeypatch):
    searched = []

    def search(worker, shard):
        searched.append(shard.rows)
        return 5

    monkeypatch.setattr(PilotWorker, "choose_batch", search)
    publish, count = worker.publish_fragment, []

    def failing(*arguments, **more):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return publish(*arguments, **more)

    monkeypatch.setattr(worker, "publish_fragment", failing)
    with pytest.raises(KeyboardInterrupt):
        audit(tiny_model, digit_file, tmp_path / "out", batch_size="auto")
    monkeypatch.setattr(PilotWorker, "choose_batch", lambda self, shard: 1 / 0)
    finished = audit(tiny_model, digit_file, tmp_path / "out", batch_size="auto")
    assert searched == [40]
    assert finished.scores["batch"].unique().to_pylist() == [5]
    assert finished.summary["run"]["batch_size"] == 5
    assert "5 images" in page(finished)
    assert finished.manifest["config"]["batch_size"] is None


def test_beside_a_gpu_a_batch_size_is_searched_unless_one_is_given(tiny_model, digit_file, tmp_path, monkeypatch):
    monkeypatch.setattr("volgrowth.audit.engine.batch_size.uses_gpus", lambda session: True)
    monkeypatch.setattr(PilotWorker, "choose_batch", lambda worker, shard: 5)
    settings = {"model": str(tiny_model), "data": str(digit_file), "shard_size": 75, "engine": "local"}

    def batches(output, **more):
        config = vg.AuditConfig.build(**settings, output=str(tmp_path / output), **more)
        finished = run_audit(config, quiet=True)
        return finished.scores["batch"].unique().to_pylist(), finished.summary["run"]["batch_size"]

    assert batches("open") == ([5], 5)
    assert batches("given", batch_size=16) == ([16], 16)
    # on another device it goes on with what was found
    monkeypatch.setattr("volgrowth.audit.engine.batch_size.uses_gpus", lambda session: False)
    (tmp_path / "open/_SUCCESS").unlink()
    next((tmp_path / "open/scores").iterdir()).unlink()
    assert batches("open") == ([5], 5)
    assert batches("cpu") == ([64], 64)


def test_a_searched_batch_size_is_one_that_fits(odd, digit_file, tmp_path):
    finished = audit(odd("plain"), digit_file, tmp_path / "out", batch_size="auto")
    assert finished.summary["run"]["batch_size"] in {2**power for power in range(6)}
    assert finished.scores["batch"].unique().to_pylist() == [finished.summary["run"]["batch_size"]]


def test_a_network_without_a_derivative_is_no_network_without_memory(odd, digit_file, tmp_path):
    """In a low precision differences need the network in float32, while a batch size is searched as in the audit."""
    model = odd("detached")
    finished = audit(model, digit_file, tmp_path / "out", batch_size="auto", dtype="bfloat16", measure=FEW_LEVELS)
    assert finished.summary["counts"]["ok"] == 150
    assert finished.summary["run"]["noise_floor"]["derivative"]["used"] == "central differences"


def test_a_compiled_audit_scores_alike(tiny_model, digit_file, tmp_path, reference, monkeypatch):
    """The compiler itself is in tests/models/test_network.py: here it is the way there and what the summary says."""
    calls = []

    def compiled(network, dynamic):
        def run(x, labels):
            calls.append(len(x))
            return network(x, labels)

        assert dynamic is False
        return run

    monkeypatch.setattr(torch, "compile", compiled)
    finished = audit(tiny_model, digit_file, tmp_path / "out", compile=True)
    assert set(calls) == {16}  # every micro-batch is padded to one shape
    np.testing.assert_array_equal(finished.scores["growth"].to_numpy(), reference.scores["growth"].to_numpy())
    monkeypatch.setattr(torch, "compile", lambda network, dynamic: lambda *a, **k: 1 / 0)
    finished = audit(tiny_model, digit_file, tmp_path / "failed", compile=True)
    np.testing.assert_array_equal(finished.scores["growth"].to_numpy(), reference.scores["growth"].to_numpy())
    (warning,) = finished.summary["run"]["warnings"]
    assert "was not compiled" in warning
    assert "ZeroDivisionError" in warning


def test_progress_moves_within_a_shard(tiny_model, digit_file, tmp_path, monkeypatch):
    """Groups of rows are told as they are measured, and forgotten when their shard is finished."""
    seen, move = list[int](), AuditProgress.move

    def watched(self: AuditProgress, within: int) -> None:
        seen.append(within)
        move(self, within)

    monkeypatch.setattr(AuditProgress, "move", watched)
    audit(tiny_model, digit_file, tmp_path / "out", shard_size=150, batch_size=16)
    assert {16, 64, 112} <= set(seen)
    assert max(seen) < 150
