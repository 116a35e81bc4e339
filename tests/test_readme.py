"""The commands and the code of README and of the pages that continue it run as they stand, beside the demo's output."""

import re
import shlex
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from volgrowth.cli import run_command

ROOT = Path(__file__).parent.parent
README, AUDITING, ACTING = ((ROOT / name).read_text() for name in ("README.md", "docs/auditing.md", "docs/acting.md"))
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README + AUDITING + ACTING, re.DOTALL)
# each command once: the pages repeat some of README's
COMMANDS = list(
    dict.fromkeys(
        line
        for language, block in BLOCKS
        if not language
        for line in block.splitlines()
        if line.startswith("volgrowth ")
    )
)
PYTHON = [block for language, block in BLOCKS if language == "python"]


@pytest.fixture(scope="module")
def folder(demo, ray_session, tmp_path_factory):
    """The working directory of a reader who has run README's commands on a quarter of the demo's training images."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(demo, folder / "demo-output")
    table = pq.read_table(demo / "train.parquet")
    pq.write_table(table.take(list(range(0, len(table), 4))), folder / "demo-output/train.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in COMMANDS:
            if not re.search(r"\b[A-Z_]{3,}\b", command):  # a placeholder
                assert run_command(shlex.split(command)[1:]) == 0, command
    return folder


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_commands_and_code_run_as_they_stand(folder, monkeypatch):
    assert len(COMMANDS) >= 3
    assert len(PYTHON) >= 3
    assert (folder / "out/report.html").is_file()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    for block in PYTHON:
        if block.startswith("# my_model.py"):
            (folder / "my_model.py").write_text(block)
            import volgrowth as vg

            assert vg.load_model("factory:my_model:load").image_shape == (3, 32, 32)
        else:
            exec(compile(block, "README.md", "exec"), {})


def test_files_that_the_readme_names_are_there():
    for name in re.findall(r"\]\(([\w./-]+)\)", README) + re.findall(
        r"`((?:volgrowth|tests|docs|jobs)/[\w./]+)`", README + AUDITING + ACTING
    ):
        assert (ROOT / name).exists(), name


def test_columns_and_presets_are_the_ones_in_the_code():
    from volgrowth.config import PaperMeasure, ScreenMeasure, StandardMeasure, VolumeMeasure

    table = {row[0]: row[-1] for row in re.findall(r"^\| `(\w+)` \|(.*)\| (\d+) \|$", AUDITING, re.MULTILINE)}
    assert table == {
        "standard": str(StandardMeasure().evaluations),
        "screen": str(ScreenMeasure().evaluations),
        "paper": str(PaperMeasure().evaluations),
        "volume": str(VolumeMeasure().evaluations),
    }
