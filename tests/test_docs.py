"""The documentation: it builds without a warning, and what it tells people to type is right."""

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import typer
import yaml

from tests.audit.output.test_views import small_audit
from volgrowth.analysis.calibration.error_rates import rows_needed
from volgrowth.analysis.policy import CURATION
from volgrowth.cli import app
from volgrowth.config import EXECUTION, AuditConfig, PaperMeasure, ScreenMeasure, StandardMeasure, VolumeMeasure
from volgrowth.records import FINDINGS, SCORES

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
CLI: Any = typer.main.get_command(app)


def blocks(page: Path, language: str) -> list[str]:
    return [block for found, block in BLOCK.findall(page.read_text()) if found == language]


def commands(text: str) -> Iterator[list[str]]:
    """Arguments of every line that calls volgrowth, without what the shell does with the output."""
    for line in text.splitlines():
        if line.strip().startswith("volgrowth "):
            words = shlex.split(line.strip(), comments=True)
            yield words[1 : next((k for k, word in enumerate(words) if word in (">", ">>", "|", "&&")), None)]


def parse(arguments: list[str]) -> None:
    """As the command line does, without running anything; raises what a wrong option raises."""
    name, *rest = arguments
    if not name.startswith("-"):
        CLI.commands[name].make_context(name, rest)
    else:
        assert any(name in parameter.opts for parameter in CLI.get_params(CLI.context_class(CLI))), name


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "cluster/README.md"], ids=lambda page: page.stem)
def test_every_command_that_is_shown_has_the_options_it_says(page):
    for block in blocks(page, ""):
        for arguments in commands(block):
            parse(arguments)
    for name in re.findall(r"`volgrowth ([a-z]+)", page.read_text()):
        assert name in CLI.commands


def test_pages_for_newcomers_show_commands():
    shown = {arguments[0] for page in PAGES for block in blocks(page, "") for arguments in commands(block)}
    assert set(CLI.commands) <= shown | {"report"}
    assert "volgrowth report" in (ROOT / "docs/report.md").read_text()


@pytest.mark.parametrize("name", sorted(CLI.commands))
def test_the_help_of_every_command_has_an_example_that_is_right(name):
    text = CLI.commands[name].help
    assert re.search(r"^Examples?:$", text, re.MULTILINE)
    examples = list(commands(text))
    assert examples
    assert {arguments[0] for arguments in examples} == {name}
    for arguments in examples:
        parse(arguments)


def test_shells_complete_commands_and_options():
    def completed(typed: str) -> str:
        environment = {"_VOLGROWTH_COMPLETE": "complete_bash", "COMP_WORDS": typed}
        environment["COMP_CWORD"] = str(len(typed.split()) - 1)
        program = Path(sys.executable).parent / "volgrowth"
        return subprocess.run([program], env=environment, capture_output=True, text=True, check=False).stdout

    assert completed("volgrowth au").split() == ["audit"]
    assert "--holdout-split" in completed("volgrowth audit --holdout").split()
    assert any("--install-completion" in parameter.opts for parameter in CLI.params)


@pytest.mark.timeout(300)
def test_the_pages_build_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    for page in PAGES:
        assert (tmp_path / "site" / f"{page.stem}.html").is_file()
    text = (tmp_path / "site/api.html").read_text()
    assert "Open a finished audit" in text
    for page in (tmp_path / "site").glob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]*?(?:src|href)="(https?:[^"]*)"', page.read_text())
        assert not loaded, f"{page.name} fetches {loaded[0]}"


def test_the_page_of_names_has_the_public_names_and_no_others():
    import volgrowth as vg
    from volgrowth import testing

    text = (ROOT / "docs/api.md").read_text()
    described = re.findall(r"^::: (\S+)\n    options:\n      heading: (\S+)$", text, re.MULTILINE)
    assert len(described) == text.count("\n:::")
    public = {f"vg.{name}": getattr(vg, name) for name in vg.__all__ if name != "__version__"}
    public |= {f"volgrowth.testing.{name}": getattr(testing, name) for name in testing.__all__}
    assert sorted(heading for _, heading in described) == sorted(public)
    for path, heading in described:
        module, _, name = path.rpartition(".")
        assert getattr(importlib.import_module(module), name) is public[heading], path


def test_code_on_the_pages_imports_public_names_alone():
    import volgrowth as vg

    for page in [*PAGES, ROOT / "README.md"]:
        for block in blocks(page, "python"):
            imported = re.findall(r"^(?:from|import) (volgrowth\S*)", block, re.MULTILINE)
            assert set(imported) <= {"volgrowth", "volgrowth.testing"}, (page, imported)
            assert set(re.findall(r"\bvg\.(\w+)", block)) <= set(vg.__all__), page


def test_columns_are_the_ones_in_the_code():
    rows = re.findall(r"^\| `(\w+)` \| ([\w<>: ]+) \| (.*) \|$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    said = [(name, type_, meaning) for name, type_, meaning in rows if (name, type_) != ("measure", "preset standard")]
    known = [
        (field.name, str(field.type), field.metadata[b"meaning"].decode())
        for schema in (SCORES, FINDINGS, CURATION)
        for field in schema
    ]
    assert said[-len(known) :] == known


def test_settings_and_their_defaults_are_the_ones_in_the_code():
    text = (ROOT / "docs/api.md").read_text()
    said = dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) ?\|", text.partition("From `output` on")[0], re.MULTILINE))
    known = AuditConfig.model_fields
    assert list(said) == list(known)
    assert set(list(said)[list(said).index("output") :]) == EXECUTION
    for name, field in known.items():
        if name != "measure":
            assert yaml.safe_load(said[name] or "null") == (None if field.is_required() else field.default), name
    rows = re.findall(r"^\| `(\w+)` \| `measure\.(\w+)` \| ([^|]*) \|", text, re.MULTILINE)
    measures = (StandardMeasure(), ScreenMeasure(), PaperMeasure(), VolumeMeasure())
    assert [(preset, name) for preset, name, _ in rows] == [
        (measure.preset, name) for measure in measures for name in type(measure).model_fields if name != "preset"
    ]
    for preset, name, default in rows:
        value = next(getattr(measure, name) for measure in measures if measure.preset == preset)
        assert yaml.safe_load(f"[{default}]") == (list(value) if isinstance(value, tuple) else [value]), name


def test_held_out_images_are_as_many_as_the_tutorial_says():
    text = " ".join((ROOT / "docs/tutorial.md").read_text().split())
    assert f"of which 50 are memorized {rows_needed(50_000, 50):,}, and to flag a single one" in text
    assert f"a single one {rows_needed(50_000, 1):,}." in text


def test_code_on_the_pages_runs(tiny_model, digits, tmp_path, monkeypatch, capsys):
    """Files that the tutorial names are written and imported; the others run, page by page, beside an audit `out`."""
    small_audit(tmp_path, tiny_model, digits)
    shutil.copytree(tiny_model, tmp_path / "model")
    shutil.copytree(tiny_model, tmp_path / "demo-output/model")
    for file in ("train.parquet", "holdout.parquet"):
        shutil.copy(tmp_path / file, tmp_path / "demo-output")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    import volgrowth as vg

    ran = []
    for page in PAGES:
        shared: dict[str, Any] = {}
        for block in blocks(page, "python"):
            name = re.match(r"# (\w+)\.py\n", block)
            if name and "def load(" in block:
                Path(f"{name[1]}.py").write_text(block)
                assert vg.load_model(f"factory:{name[1]}:load").image_shape == (3, 32, 32)
            elif name and name[1] == "split":
                compile(block, page.name, "exec")  # needs a folder of photographs
            else:
                exec(compile(block.replace("samples=500", "samples=2"), page.name, "exec"), shared)
            ran.append(block)
    assert len(ran) >= 6
    assert "expected below 0.1" in capsys.readouterr().out
    for made in ("report.html", "croissant.json", "findings.parquet"):  # by the tutorial, which begins with Python
        assert Path("audit-of-digits", made).is_file()
    assert Path("list.csv").is_file()


def test_the_tutorial_leads_with_python():
    text = (ROOT / "docs/tutorial.md").read_text()
    assert text.index("vg.audit_images(") < text.index("volgrowth audit ")


def test_security_is_told_where_people_look():
    for page in ("README.md", "CONTRIBUTING.md"):
        assert "](SECURITY.md)" in (ROOT / page).read_text()
    assert "/SECURITY.md)" in (ROOT / "docs/acting.md").read_text()
    text = (ROOT / "SECURITY.md").read_text()
    for name, command in CLI.commands.items():
        takes = any("--trust-output" in parameter.opts for parameter in command.params)
        assert takes == (name in ("verify", "report", "curate"))
        assert not takes or f"`{name}" in text
