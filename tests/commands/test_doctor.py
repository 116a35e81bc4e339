"""`volgrowth doctor`: the table of a machine, what is broken, and that no credential is printed."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from volgrowth.cli import run_command
from volgrowth.commands import doctor
from volgrowth.commands.doctor import Finding, doctor_lines


def test_this_machine_can_run_an_audit_and_no_credential_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "very-secret")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_command(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "very-secret" not in said
    table = dict(line.split("  ", 1) for line in said.splitlines() if "  " in line)
    for name in ("volgrowth", "Python", "torch", "ray", "CPU", "Ray", "s3://", "temporary space"):
        assert name in table
    assert "credentials in AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in table["s3://"]
    assert "no credentials found" in table["gs://"]
    assert said.splitlines()[-1] == "an audit can run here"


def test_a_missing_package_is_broken_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "NEEDED", ("no-such-package",))
    assert run_command(["doctor"]) == 2
    said = capsys.readouterr().out
    assert "broken: no-such-package: cannot be imported (No module named 'no-such-package')" in said
    assert "an audit can run here" not in said


def test_an_optional_package_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NEEDED", ())
    monkeypatch.setattr(doctor, "OPTIONAL", ("no-such-package",))
    assert list(doctor._packages()) == [Finding("no-such-package", "not installed (optional)")]


@pytest.mark.parametrize(("free", "broken"), [(50 << 20, True), (200 << 20, False)])
def test_too_little_temporary_space_is_broken(monkeypatch: pytest.MonkeyPatch, free: int, broken: bool) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    (found,) = doctor._room()
    assert bool(found.broken) == broken
    assert f"{free >> 20} MiB free" in found.state


def test_a_part_that_raises_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising() -> Iterator[Finding]:
        raise RuntimeError("no driver\nmore")

    for name in ("_packages", "_devices", "_ray", "_stores"):
        monkeypatch.setattr(doctor, name, raising if name == "_devices" else lambda: iter(()))
    assert "broken: devices: RuntimeError: no driver" in doctor_lines(doctor.examine_machine())
