"""The wheel: built from the sources, installed into an environment of its own, and run from there."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, env=environment, **options
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # building writes beside the sources
    shutil.copytree(ROOT / "volgrowth", source / "volgrowth", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    built = run(sys.executable, *build)
    assert built.returncode == 0, built.stderr
    [found] = folder.glob("volgrowth-*.whl")
    return found


def test_the_wheel_holds_the_package_and_what_its_pages_need_and_no_more(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    here = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "volgrowth").rglob("*")
        if path.is_file() and path.suffix in (".py", ".j2", ".css", ".js", ".txt", ".typed")
    }
    assert held == here


def test_the_installed_wheel_audits_without_the_libraries_of_text_models(wheel, tiny_model, digit_file, tmp_path):
    """In an environment with the dependencies of the tests, but for those that only models of captions need."""
    assert run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv").returncode == 0
    python = tmp_path / "venv/bin/python"
    install = ("-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    installed = run(sys.executable, *install)
    assert installed.returncode == 0, installed.stderr
    site = next((tmp_path / "venv/lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    for name in ("transformers", "peft"):
        (site / f"{name}.py").write_text("raise ImportError('not here')")
    where = run(python, "-c", "import volgrowth; print(volgrowth.__file__)", cwd=tmp_path)
    assert Path(where.stdout.strip()).is_relative_to(site)
    out, program = tmp_path / "out", tmp_path / "venv/bin/volgrowth"
    audited = run(
        *(program, "audit", tiny_model, digit_file, "--output", out, "--engine", "local", "--trust-model"), cwd=tmp_path
    )
    assert audited.returncode == 0, audited.stderr
    assert (out / "report.html").is_file()
