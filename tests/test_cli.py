"""What a person types, and what they read when it is wrong."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from tests.conftest import VOLGROWTH, volgrowth
from volgrowth.cli import app, run_command
from volgrowth.demo.cases import write_image_parquet
from volgrowth.version import VERSION

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_help_imports_neither_torch_nor_ray():
    code = (
        "import sys; from volgrowth.cli import run_command; run_command(['--help']); "
        "[run_command([name, '--help']) for name in ('audit', 'curate', 'check', 'verify')]; "
        "heavy = {'torch', 'ray', 'datasets', 'diffusers', 'sklearn', 'matplotlib'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "memorized" in finished.stdout
    assert "Examples" in finished.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_in_a_sentence(name):
    for parameter in COMMANDS[name].params:
        if parameter.name != "help":
            assert re.fullmatch(r"\S.{10,}\.", parameter.help or ""), (name, parameter.name, parameter.help)


def test_importing_the_package_is_cheap_and_its_names_are_there():
    code = (
        "import sys, volgrowth as vg; assert 'torch' not in sys.modules; "
        "assert vg.volume_growth and vg.load_model and vg.run_audit and vg.open_audit; "
        "[getattr(vg, name) for name in vg.__all__]; "
        "sys.exit(0 if 'torch' in sys.modules else 1)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version():
    finished = subprocess.run([VOLGROWTH, "--version"], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == VERSION


@pytest.fixture
def say(capsys, tmp_path, monkeypatch):
    """Run a command that cannot start in an empty folder; what it says."""
    monkeypatch.chdir(tmp_path)

    def say(*arguments: object, said: str = "") -> str:
        before = sorted(tmp_path.rglob("*"))
        assert run_command([str(a) for a in arguments]) == 2
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert re.fullmatch(said, captured.out)
        assert sorted(tmp_path.rglob("*")) == before  # nothing was written
        return " ".join(captured.err.split())

    return say


def test_a_missing_path(say, tiny_model, digit_file):
    assert "./nowhere does not exist" in say("audit", tiny_model, "./nowhere", "--output", "out")
    assert "model ./nowhere does not exist: expected a diffusers folder" in say(
        "audit", "./nowhere", digit_file, "--output", "out"
    )


def test_a_wrong_split_or_column(say, tiny_model, digit_file):
    said = say("audit", tiny_model, digit_file, "--output", "out", "--image-column", "picture")
    assert "picture" in said
    assert "image" in said
    assert "validation" in say("audit", tiny_model, digit_file, "--output", "out", "--split", "validation")
    assert "serial" in say("audit", tiny_model, digit_file, "--output", "out", "--id-column", "serial")


def test_a_model_that_is_no_diffusion_model(say, digit_file, tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text('{"architectures": ["BertModel"], "model_type": "bert"}')
    assert "which volgrowth does not know: expected one of UNet2DModel" in say(
        "audit", tmp_path / "bert", digit_file, "--output", "out"
    )


def test_a_data_set_without_images(say, tiny_model, tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    assert "text" in say("audit", tiny_model, tmp_path / "text.parquet", "--output", "out")
    (tmp_path / "empty").mkdir()
    assert "image" in say("audit", tiny_model, tmp_path / "empty", "--output", "out")


def test_an_output_with_something_else_in_it_or_that_cannot_be_written(say, tiny_model, digit_file, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    opened = r"opened: [^\n]+\nleft aside: [^\n]+\n"  # what was found is printed before the output is looked at
    assert "is not empty and holds no audit (it has notes.txt)" in say(
        "audit", tiny_model, digit_file, "--output", tmp_path / "full", said=opened
    )
    assert (tmp_path / "full/notes.txt").read_text() == "mine"
    assert "cannot be" in say("audit", tiny_model, digit_file, "--output", tmp_path / "full/notes.txt/out", said=opened)


def test_settings_that_make_no_sense(say, tiny_model, digit_file, digits, tmp_path):
    few = tmp_path / "few.parquet"
    write_image_parquet(few, digits[:9], [str(row) for row in range(9)])
    command = ["audit", tiny_model, digit_file, "--output", "out"]
    assert "setting shard_size: expected 1 or more, got 0" in say(*command, "--shard-size", 0)
    assert "measure.num_prob" in say(*command, "--set", "measure.num_prob=4")
    assert "expected NAME=VALUE" in say(*command, "--set", "seed")
    assert "expected standard, screen, paper or volume, got 'fancy'" in say(*command, "--preset", "fancy")
    assert "cannot be read" in say(*command, "--config", "missing.yaml")
    assert "is not a YAML value" in say(*command, "--set", "measure.num_probes=[")
    (tmp_path / "numbers.yaml").write_text("1: 2")
    assert "a YAML mapping of setting names" in say(*command, "--config", "numbers.yaml")
    assert "65 axes in 64 dimensions" in say(*command, "--preset", "paper", "--set", "measure.num_tangents=65")
    assert "largest_level must be above" in say(*command, "--preset", "volume", "--set", "measure.largest_level=0.001")
    assert "expected at least 50" in say(*command, "--holdout", few)
    assert "audit has no option --holdut: did you mean --holdout" in say(*command, "--holdut", 1)
    assert "--workers: expected a whole number" in say(*command, "--workers", "x")
    assert "audit needs MODEL, DATA and --output: `volgrowth audit --help`" in say("audit")
    assert "audit needs DATA and --output" in say("audit", tiny_model)
    assert "verify needs OUTPUT and --samples" in say("verify")


def test_a_checkpoint_of_a_training_run_is_chosen_by_its_number(say, tiny_model, digit_file, tmp_path):
    said = say("audit", tmp_path / "run", digit_file, "--output", "out", "--checkpoint", "500")
    assert f"{tmp_path}/run/checkpoint-500" in said


def test_the_help_of_audit_is_in_groups_with_defaults(capsys):
    assert run_command(["audit", "--help"]) == 0
    shown = capsys.readouterr().out
    titles = ["─ Model ─", "─ Data ─", "─ What is measured ─", "─ Where and how it runs ─"]
    assert all(title in shown for title in titles)
    assert "(1024)" in shown


def test_reports_of_what_is_no_audit(say, tmp_path):
    assert "holds no audit" in say("report", tmp_path / "nowhere")


def test_a_ray_that_is_not_there(tiny_model, digit_file, tmp_path):
    arguments = ["audit", tiny_model, digit_file, "--output", "out", "--ray-address", "127.0.0.1:1"]
    finished = volgrowth(*arguments, cwd=tmp_path)
    assert finished.returncode == 2
    assert "Ray cannot be reached at 127.0.0.1:1" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.slow
def test_options_files_and_exit_code_three(tiny_model, tmp_path, digits, capsys, monkeypatch):
    """More failed rows than allowed: everything is written, and the exit code says so."""
    from volgrowth.audit.output.result import open_audit
    from volgrowth.sources import encode_png

    monkeypatch.chdir(tmp_path)
    rows = [{"picture": encode_png(image), "serial": k} for k, image in enumerate(digits[:60])]
    rows[3]["picture"] = b"junk"
    pq.write_table(pa.Table.from_pylist(rows), "d.parquet")
    Path("c.yaml").write_text("seed: 4\nbatch_size: 8\nmeasure:\n  loss_level: 0.4\n")
    command = [
        "audit", str(tiny_model), "d.parquet", "--output", "out", "--config", "c.yaml", "--id-column", "serial",
        "--set", "measure.norm_level=0.2", "--shard-size", "30", "--engine", "local",
    ]  # fmt: skip
    assert run_command(command) == 3
    captured = capsys.readouterr()
    assert "more than --max-failed 0.01" in captured.err
    assert "no score: 1 row undecodable, such as row 3 (d.parquet#3): not an image of a known format" in captured.out
    assert run_command([*command, "--max-failed", "0.5"]) == 0
    assert "59 of 60 images scored" in capsys.readouterr().out
    audit = open_audit("out")
    config = audit.manifest["config"]
    assert (config["seed"], config["batch_size"], config["shard_size"]) == (4, 8, 30)
    assert config["measure"] == {"preset": "standard", "norm_level": 0.2, "loss_level": 0.4}
    assert audit.scores.column("image_id").to_pylist()[:3] == ["0", "1", "2"]
    report = Path("out/report.html").read_text()
    Path("out/report.html").unlink()
    assert run_command(["report", "out"]) == 0
    assert Path("out/report.html").read_text() == report
    assert run_command([*command, "--set", "seed=5"]) == 2
    assert "holds another audit: seed was 4 there and is 5 now" in capsys.readouterr().err
