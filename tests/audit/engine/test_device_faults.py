"""A GPU that fails costs no row its score: its worker is replaced, and its node avoided if it fails again and again."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

import volgrowth as vg
from tests.conftest import volgrowth
from volgrowth.audit.engine.device_faults import MOST_FAULTS, DeviceFaults, device_failed
from volgrowth.audit.output.result import Audit
from volgrowth.commands.audit import run_audit
from volgrowth.errors import EngineError, ModelError

ECC = "CUDA error: uncorrectable ECC error encountered\nCompile with `TORCH_USE_CUDA_DSA`"
MODEL = """
import os, sys
import volgrowth as vg

BROKEN = []

class Failing(vg.GaussianDenoiser):
    image_shape = (1, 8, 8)

    def noise(self, y, noise_level):
        folder = os.environ["FAULTS"]
        left = [name for name in os.listdir(folder) if name.isdigit() or name == "one"]
        if BROKEN or (left and len(y) == 16):
            if not BROKEN:  # the device stays out of order for this process
                BROKEN.append(left[0])
                os.remove(os.path.join(folder, left[0]))
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
        return super().noise(y, noise_level)

def make(device, dtype):
    start = os.path.join(os.environ["FAULTS"], "start")
    if os.path.exists(start) and "default_worker.py" in sys.argv[0]:
        os.remove(start)
        raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable")
    return Failing(0.0, 0.3)
"""


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (ECC, True),
        ("CUDA error: CUDA-capable device(s) is/are busy or unavailable", True),
        ("CUDA error: no CUDA-capable device is detected", True),
        ("CUDA error: unknown error", True),
        ("CUDA error: device-side assert triggered", False),
        ("CUDA error: an illegal memory access was encountered", False),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", False),
    ],
)
def test_a_device_that_failed_is_told_from_errors_that_rows_may_make(text, fault):
    assert device_failed(RuntimeError(text)) is fault
    assert not device_failed(ValueError(text))
    wrapped = ModelError("the factory failed")
    assert not device_failed(wrapped)
    wrapped.__cause__ = RuntimeError(text)
    assert device_failed(wrapped) is fault
    assert device_failed(torch.AcceleratorError(text)) is fault


def test_a_node_is_avoided_after_some_faults_as_long_as_there_is_another():
    faults, nodes = DeviceFaults(), [{"NodeID": name, "Alive": True} for name in "ab"]
    assert [faults.note("a") for _ in range(MOST_FAULTS)] == [False] * (MOST_FAULTS - 1) + [True]
    assert faults.note("b") is False
    assert faults.avoided == ["a"]
    faults.check_others(nodes)
    with pytest.raises(EngineError, match="GPUs of every node failed 3 times"):
        faults.check_others([nodes[0], {"NodeID": "b", "Alive": False}])
    DeviceFaults().check_others(nodes[:1])


@pytest.fixture
def failing(tmp_path, monkeypatch):
    (tmp_path / "failing_model.py").write_text(MODEL)
    (tmp_path / "faults").mkdir()
    monkeypatch.setenv("FAULTS", str(tmp_path / "faults"))
    monkeypatch.syspath_prepend(tmp_path)
    yield "factory:failing_model:make"
    sys.modules.pop("failing_model", None)


def audit(model: str, data: Path, output: Path, **more: object) -> Audit:
    settings = {"batch_size": 16, "shard_size": 75, "trust_model": True, "engine": "local", **more}
    return run_audit(vg.AuditConfig.build(model=model, data=str(data), output=str(output), **settings), quiet=True)


def test_without_ray_the_audit_ends_with_a_sentence_and_goes_on_later(failing, digit_file, tmp_path):
    (tmp_path / "faults/one").touch()
    with pytest.raises(EngineError, match=r"the GPU failed \(RuntimeError: CUDA error: uncorrectable ECC.*resumes"):
        audit(failing, digit_file, tmp_path / "out")
    sys.modules["failing_model"].BROKEN.clear()
    assert audit(failing, digit_file, tmp_path / "out").summary["counts"]["ok"] == 150


@pytest.mark.ray
@pytest.mark.parametrize(("faults", "code"), [(2, 0), (3, 2)])
def test_with_ray_the_worker_is_replaced_and_no_row_is_blamed(failing, digit_file, tmp_path, faults, code):
    """Three faults are too many for the only node; the first one is met at the start of a worker."""
    for name in ("start", *range(faults - 1)):
        (tmp_path / "faults" / str(name)).touch()
    log, out = tmp_path / "log", tmp_path / "out"
    settings = ["--workers", 1, "--trust-model", "--set", "batch_size=16", "--log-json", log]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    done = volgrowth("audit", failing, digit_file, "--output", out, *settings, cwd=tmp_path, env=environment)
    assert done.returncode == code, done.stderr
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in events].count("device_failed") == faults
    if code:
        assert "the GPUs of every node failed 3 times" in done.stderr
        assert "Traceback" not in done.stderr
    else:
        assert vg.open_audit(str(out), trust_output=True).summary["counts"]["ok"] == 150
