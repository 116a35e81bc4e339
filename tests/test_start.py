"""What a command loads before it answers, and what it does only once."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from volgrowth.audit.workers import loading
from volgrowth.cli import run_command
from volgrowth.commands import audit

# runs commands one after the other in one process, and ends at the first after which a heavy library is loaded
COMMANDS = """
import json, sys
import volgrowth
from volgrowth.cli import run_command
heavy = {"torch", "ray", "sklearn", "scipy.stats", "matplotlib", "datasets", "diffusers", "transformers"}
for command, code in [([], None), *json.loads(sys.argv[1])]:
    assert code is None or run_command(command) == code, command
    if found := heavy & set(sys.modules):
        sys.exit(f"volgrowth {' '.join(command)} loads {sorted(found)}")
"""


@pytest.fixture(scope="module")
def command(tiny_model, digit_file, tmp_path_factory):
    """The command of an audit that is finished, with a model of its own."""
    folder = tmp_path_factory.mktemp("start")
    shutil.copytree(tiny_model, folder / "model")
    return [
        *("audit", str(folder / "model"), str(digit_file), "--output", str(folder / "out")),
        *("--engine", "local", "--trust-model"),
    ]


@pytest.fixture(scope="module")
def finished(command):
    assert run_command(command) == 0
    return Path(command[4])


def test_what_is_finished_is_opened_without_heavy_libraries(command, finished, tmp_path):
    import json

    asked = [(["check", "no/such/audit"], 2), (["check", str(finished)], 2), (["report", str(finished)], 0)]
    given = json.dumps([*asked, (command, 0)])
    ran = subprocess.run([sys.executable, "-c", COMMANDS, given], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "nothing was measured" in ran.stdout


def test_a_model_is_inspected_again_only_if_its_files_changed(command, finished, capsys, monkeypatch):
    asked = []
    inspect = audit.inspect_inputs

    def inspected(config, recorded):
        found = inspect(config, recorded)
        asked.append(found.manifest.model is recorded)
        return found

    monkeypatch.setattr(audit, "inspect_inputs", inspected)
    model = Path(command[1])
    weights = model / "unet/diffusion_pytorch_model.safetensors"
    shutil.copy(weights, model / "copy")
    shutil.move(model / "copy", weights)
    assert run_command(command) == 0
    (model / "README.json").write_text("{}")  # one more file: looked at again, and the same model
    assert run_command(command) == 0
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    capsys.readouterr()
    assert run_command(command) == 2
    assert "the model's weights changed" in capsys.readouterr().err
    assert asked == [True, False, False]
    changed[-1] ^= 1
    weights.write_bytes(changed)
    (model / "README.json").unlink()


def test_the_page_is_drawn_again_only_if_something_in_it_would_change(finished):
    page, figure = finished / "report.html", finished / "figures/growth.svg"
    drawn, first = page.read_bytes(), page.stat()

    def report(*options: str) -> bool:
        assert run_command(["report", str(finished), *options]) == 0
        return page.stat().st_ino != first.st_ino

    assert not report()
    figure.write_bytes(figure.read_bytes()[:-1])
    assert report()
    assert page.read_bytes() == drawn
    first, redacted = page.stat(), finished / "report-redacted.html"
    assert not report("--redact")
    written = redacted.stat()
    assert not report("--redact")
    assert redacted.stat().st_ino == written.st_ino
    assert redacted.read_bytes() != page.read_bytes() == drawn


def test_an_audit_in_this_process_loads_the_model_once_and_saves_each_figure_twice(
    command, tmp_path, monkeypatch, figures_kept
):
    figures_kept.clear()
    loaded: list[str] = []
    saved: list[str] = []
    load, save = loading.load_model, Figure.savefig

    def counted_load(**given):
        loaded.append(given["dtype"])
        return load(**given)

    def counted_save(figure, *given, **options):
        saved.append(options["format"])
        return save(figure, *given, **options)

    monkeypatch.setattr(loading, "load_model", counted_load)
    monkeypatch.setattr(Figure, "savefig", counted_save)
    given = [str(tmp_path / "out") if each == command[4] else each for each in command]
    assert run_command(given) == 0  # a worker of its own finds the batch size
    assert loaded == ["float32", "float64"]  # the noise floor takes the other
    assert len(saved) == len(list((tmp_path / "out/figures").iterdir()))


def test_without_ray_a_local_audit_and_all_that_follows_work(command, tmp_path):
    """And what needs Ray says so in a sentence."""
    import json

    (tmp_path / "ray.py").write_text("raise ImportError('no Ray is here')")
    out = str(tmp_path / "out")
    here, there = ([*command[:4], folder] for folder in (out, str(tmp_path / "other")))
    asked = [
        ([*here, "--engine", "local", "--trust-model"], 0),
        (["verify", out, "--samples", "4", "--engine", "local"], 0),
        (["report", out], 0),
        (["curate", out, "--fdr", "0.1", "--action", "drop", "--list", str(tmp_path / "list.csv")], 0),
        (["check", out], 2),  # nothing is held out
        (["check-output", out], 0),
        ([*there, "--trust-model"], 2),
    ]
    run = COMMANDS.partition("    if found")[0].replace(
        "import volgrowth\n", f"sys.path.insert(0, {str(tmp_path)!r})\n"
    )
    ran = subprocess.run([sys.executable, "-c", run, json.dumps(asked)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert (
        "Ray cannot be imported (no Ray is here): pip install 'ray>=2.50', or work without it (--engine local)"
        in ran.stderr
    )
    assert "Traceback" not in ran.stderr


def test_a_worker_calls_a_factory_once(digit_file, tmp_path, monkeypatch):
    (tmp_path / "counted.py").write_text(
        "import torch\nimport volgrowth as vg\ncalls = []\n\n"
        "class Plain(vg.GaussianDenoiser):\n    image_shape = (1, 8, 8)\n\n"
        "def load(device, dtype):\n    calls.append(dtype)\n"
        "    return Plain(torch.zeros((), dtype=dtype), torch.full((), 0.3, dtype=dtype))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    given = ["audit", "factory:counted:load", str(digit_file), "--output", str(tmp_path / "out")]
    assert run_command([*given, "--engine", "local", "--trust-model"]) == 0
    import counted  # type: ignore[import-not-found]

    assert [str(dtype) for dtype in counted.calls] == ["torch.float32", "torch.float32", "torch.float64"]
