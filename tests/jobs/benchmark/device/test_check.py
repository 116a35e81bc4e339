"""The check of a GPU: every step runs in small on any machine, and none harms another."""

import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.benchmark.__main__ import main
from jobs.benchmark.device import audits, captioned, check
from jobs.benchmark.device.check import BUDGETS, STEPS, Step, check_device, run_steps
from jobs.benchmark.device.host_cost import measure_host_cost
from jobs.benchmark.device.rig import SECONDS, Rig
from volgrowth.errors import UsageError


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def of(found: list[dict[str, Any]], step: str) -> list[dict[str, Any]]:
    return [line for line in found if line["step"] == step]


def test_every_step_runs_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All but audits, and but the speed of further networks, which a quick check has not."""
    steps = [
        name for name in STEPS if name not in ("audits", "captioned audit", "speed, DiT", "speed, Stable Diffusion")
    ]
    assert main(["gpu", "--quick", "--output", str(tmp_path), "--only", *steps]) == 0
    found = lines(tmp_path / "gpu.jsonl")
    assert found[-1]["step"] == "end"
    assert found[-1]["failed"] == []
    assert list(dict.fromkeys(line["step"] for line in found[:-1])) == steps
    printed = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in printed[:-1]] == found
    for line in of(found, "growth"):
        assert line["finite"]
        assert line["deviation of spread"] < (0.01 if line["dtype"] == "float32" else 0.1)
    (full,) = of(found, "full device")[:1]
    assert full["failed"] == 0
    assert full["worst"] <= 0.1 * full["spread"]


@pytest.mark.slow
@pytest.mark.parametrize("check", [audits.check_audits, captioned.check_captioned])
def test_audits_are_measured(tmp_path: Path, check: Step) -> None:
    (audit,) = check(Rig(torch.device("cpu"), tmp_path, quick=True))
    assert (audit["exit code"], audit["scored"]) == (0, audit["rows"])
    assert audit["arithmetic"]["dtype"] == ["bfloat16"]
    assert audit["images/s"] > 0


def good(rig: Rig) -> Iterator[dict[str, Any]]:
    yield {"value": 1 / 3}


def broken(rig: Rig) -> Iterator[dict[str, Any]]:
    yield {"value": 1}
    raise torch.OutOfMemoryError("no room")


def test_a_step_that_fails_keeps_what_it_found_and_stops_no_other(tmp_path: Path) -> None:
    file = io.StringIO()
    failed = run_steps(Rig(torch.device("cpu"), tmp_path), {"first": broken, "second": good}, file)
    assert failed == ["first"]
    first, error, second, end = map(json.loads, file.getvalue().splitlines())
    assert (first["value"], second["value"]) == (1, 0.33333)
    assert error["error"] == "OutOfMemoryError: no room"
    assert error["at"][-1].startswith("test_check.py:")
    assert end["failed"] == ["first"]


def test_no_step_is_begun_when_it_is_late(tmp_path: Path) -> None:
    file = io.StringIO()
    rig = Rig(torch.device("cpu"), tmp_path, began=time.monotonic() - SECONDS - 1)
    assert run_steps(rig, {"first": broken}, file) == []
    assert json.loads(file.getvalue().splitlines()[0])["skipped"] == "no time left"


def test_steps_share_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that has spent its share begins no further part, and those behind it have theirs."""
    assert list(BUDGETS) == list(STEPS)
    assert sum(BUDGETS.values()) == SECONDS
    left = list[float]()

    def greedy(rig: Rig) -> Iterator[dict[str, Any]]:
        left.append(rig.left)
        rig.began -= rig.left
        assert rig.late(0.001)
        yield {}

    rig = Rig(torch.device("cpu"), tmp_path)
    assert run_steps(rig, {"audits": greedy, "decoding": greedy}, io.StringIO()) == []
    assert left == [pytest.approx(BUDGETS[name], abs=1) for name in ("audits", "decoding")]


def test_steps_that_failed_are_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "STEPS", {"first": broken, "second": good})
    assert main(["gpu", "--quick", "--output", str(tmp_path)]) == 2
    assert "1 steps of the check failed (first)" in capsys.readouterr().err


def test_what_cannot_be_checked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--only 'nothing': expected some of device, growth"):
        check_device(tmp_path, ["nothing"], quick=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="there is no GPU here that torch can use: give --quick"):
        check_device(tmp_path)


SLEEPING = """
import subprocess, sys
print("begun", flush=True)
subprocess.run([sys.executable, "-c", "import time; time.sleep(99)"])
"""


def test_a_command_that_takes_too_long_is_ended_with_what_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audits, "GRACE", 0.5)
    assert audits.run_in_time([sys.executable, "-c", "print('done')"]) == (0, "done\n")
    code, said = audits.run_in_time([sys.executable, "-c", SLEEPING], 1.0)  # its pipe closes when both have ended
    assert code < 0
    assert said == "begun\n (it was ended after 1 s)"


def test_a_recorded_launch_costs_the_host_a_handful_of_operations() -> None:
    rows = {row["preset"]: row for row in measure_host_cost(quick=True).tables["table"]}
    for preset in ("screen", "standard", "paper", "paper, jvp"):
        assert rows[preset]["recorded, operations"] <= 5 < 100 < rows[preset]["operations"]
    assert rows["volume"]["recorded, operations"] is None
