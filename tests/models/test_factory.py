"""factory:module:function, from the working directory and from packages."""

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.checkpoints import problem
from volgrowth.models import inspect_model, load_model
from volgrowth.models.user_code import noted_line
from volgrowth.models.weight_digest import NOT_FOUND
from volgrowth.numerics import EmpiricalDenoiser, GaussianDenoiser
from volgrowth.numerics.growth import check_images

CALLS: list[Callable[..., object]] = [load_model, inspect_model]
MODULE = """
import torch
import volgrowth as vg

seen = []

def build(device, dtype):
    seen.append((device, dtype))
    denoiser = vg.GaussianDenoiser(0.25, 0.5)
    denoiser.image_shape = (1, 8, 8)
    return denoiser

def shapeless(device, dtype):
    return vg.GaussianDenoiser(0.0, 1.0)

def flat(device, dtype):
    return vg.EmpiricalDenoiser(torch.zeros(2, 64))

def two_channels(device, dtype):
    return vg.EmpiricalDenoiser(torch.zeros(2, 2, 8, 8))

def endless(device, dtype):
    denoiser = build(device, dtype)
    denoiser.image_shape = (1, None, None)
    return denoiser

def listed(device, dtype):
    denoiser = build(device, dtype)
    denoiser.image_shape = [1, 8, 8]
    return denoiser

def network(device, dtype):
    return torch.nn.Identity()

class Blank(vg.Denoiser):
    image_shape = (1, 8, 8)

    def __call__(self, y, noise_level):
        return 0 * y

def without_tensors(device, dtype):
    return Blank()

def a_class(device, dtype):
    return vg.GaussianDenoiser

def no_file(device, dtype):
    torch.load("not-here.pt", weights_only=True)

def ends(device, dtype):
    raise SystemExit(0)

def random_weights(device, dtype):
    denoiser = build(device, dtype)
    denoiser.network = torch.nn.Linear(2, 2)
    return denoiser

def without_arguments():
    return build(None, None)

def broken(device, dtype):
    raise FileNotFoundError("weights.pt")

number = 3
"""


BROKEN = '    raise FileNotFoundError("weights.pt")'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run the test in a working directory with modules of its own, and forget them afterwards."""
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    (tmp_path / "my_models.py").write_text(MODULE)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    (tmp_path / "my_package" / "models.py").write_text("from my_models import build as make\n")
    (tmp_path / "half_written.py").write_text("def build(device, dtype)\n    return 1\n")
    (tmp_path / "needs_more.py").write_text("import no_such_library\n")
    (tmp_path / "stops.py").write_text("raise RuntimeError('no GPU here')\n")
    (tmp_path / "a_script.py").write_text("import sys\n\nsys.exit(0)\n")
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.mark.parametrize("name", ["factory:my_models:build", "factory:my_package.models:make"])
def test_a_users_denoiser_comes_back(name: str) -> None:
    denoiser = load_model(name, dtype="float64")
    assert isinstance(denoiser, GaussianDenoiser)
    assert sys.modules["my_models"].seen == [(torch.device("cpu"), torch.float64)]
    assert denoiser.dtype == torch.float64
    assert denoiser.device == torch.device("cpu")
    info = inspect_model(name)
    assert (info.name, info.kind, info.image_shape, info.parameters) == (name, "gaussian", (1, 8, 8), 2)


def test_an_installed_module_needs_no_working_directory() -> None:
    """This test module's own package is on the path, the working directory holds nothing of it."""
    denoiser = load_model(f"factory:{__name__}:from_the_tests")
    assert isinstance(denoiser, EmpiricalDenoiser)


def from_the_tests(device: torch.device, dtype: torch.dtype) -> EmpiricalDenoiser:
    return EmpiricalDenoiser(torch.zeros(2, 3, 8, 8, dtype=dtype, device=device))


def test_weights_that_changed_under_the_same_name_are_another_model(here: Path) -> None:
    """And a manifest from before weights were covered knows the factory by its source alone."""
    (here / "from_file.py").write_text(
        "import torch\nimport volgrowth as vg\n\ndef load(device, dtype):\n"
        "    network = torch.nn.Conv2d(1, 1, 1)\n"
        "    network.load_state_dict(torch.load('weights.pt', weights_only=True))\n"
        "    levels = vg.Scheduled(vg.VPSchedule(0.1, 20.0), 'epsilon', (0.01, 100.0))\n"
        "    return vg.NetworkDenoiser(lambda x, t: network(x), levels, (1, 8, 8))\n"
    )
    torch.save({"weight": torch.ones(1, 1, 1, 1), "bias": torch.zeros(1)}, here / "weights.pt")
    before, again = (inspect_model("factory:from_file:load") for _ in range(2))
    assert before == again
    assert (before.parameters, before.notes) == (2, ())
    torch.save({"weight": torch.ones(1, 1, 1, 1), "bias": torch.full((1,), 1e-7)}, here / "weights.pt")
    after = inspect_model("factory:from_file:load")
    assert after.hash != before.hash
    assert not after.is_model_of(before)
    assert again.is_model_of(before)
    assert before.source_hash
    of_an_older_audit = replace(before, hash=before.source_hash, source_hash=None)
    assert after.is_model_of(of_an_older_audit)


def test_a_factory_without_tensors_is_known_by_its_source_and_says_so() -> None:
    assert inspect_model("factory:my_models:without_tensors").notes == (NOT_FOUND,)


def test_a_factory_of_random_weights_is_another_model_each_time() -> None:
    first, second = (inspect_model("factory:my_models:random_weights") for _ in range(2))
    assert not second.is_model_of(first)


def test_errors_name_the_line_of_the_users_file(here: Path) -> None:
    """The user's own line, whether the error comes up there or in a library that is called there."""
    line = 1 + MODULE.splitlines().index('    torch.load("not-here.pt", weights_only=True)')
    said = problem(load_model, "factory:my_models:no_file")
    assert f"failed with FileNotFoundError: [Errno 2] No such file or directory: 'not-here.pt' at {here}" in said
    assert f"my_models.py, line {line}; it is called as" in said
    assert f"at {here / 'half_written.py'}, line 1)" in problem(load_model, "factory:half_written:build")
    assert f"at {here / 'needs_more.py'}, line 1)" in problem(load_model, "factory:needs_more:build")
    assert f"at {here / 'a_script.py'}, line 3)" in problem(load_model, "factory:a_script:build")


@pytest.mark.parametrize("setting", ["revision", "subfolder", "base", "lora"])
@pytest.mark.parametrize("call", CALLS, ids=["load", "inspect"])
def test_settings_that_a_factory_would_not_see_are_refused(call: Callable[..., object], setting: str) -> None:
    said = problem(call, "factory:my_models:build", **{setting: "other"})
    assert said == f"{setting} other was given, and a factory loads what it needs itself: leave it out"


def test_the_digest_is_of_name_and_source(here: Path) -> None:
    first = inspect_model("factory:my_models:build").hash
    assert first == inspect_model("factory:my_models:build").hash
    assert first != inspect_model("factory:my_models:listed").hash
    del sys.modules["my_models"]
    (here / "my_models.py").write_text(MODULE.replace("0.25", "0.75"))
    assert inspect_model("factory:my_models:build").hash != first


def test_a_shape_may_be_a_list() -> None:
    denoiser = load_model("factory:my_models:listed")
    check_images(denoiser, torch.zeros(2, 1, 8, 8))
    assert inspect_model("factory:my_models:listed").image_shape == (1, 8, 8)


REFUSED = {
    "factory:": "is no factory: expected factory:module:function",
    "factory:my_models": "is no factory: expected factory:module:function",
    "factory:my_models:": "is no factory: expected factory:module:function",
    "factory::build": "is no factory: expected factory:module:function",
    "factory:my_models:build:more": "is no factory: expected factory:module:function",
    "factory:no_such_module:build": "cannot be imported (No module named 'no_such_module'): expected a module",
    "factory:.my_models:build": "cannot be imported",
    "factory:my_models:biuld": "cannot be imported (module 'my_models' has no attribute 'biuld')",
    "factory:needs_more:build": "cannot be imported (No module named 'no_such_library' at ",
    "factory:half_written:build": "cannot be imported (expected ':'",
    "factory:stops:build": "cannot be imported (no GPU here at ",
    "factory:a_script:build": "cannot be imported (it ends the program when it is imported: put what it does under",
    "factory:my_models:ends": "failed with SystemExit: 0 at ",
    "factory:my_models:a_class": "returned the class GaussianDenoiser: expected a volgrowth.Denoiser",
    "factory:math:cos": "cannot be imported",
    "factory:sys:exit": "cannot be imported",
    "factory:my_models:network": "returned a Identity: expected a volgrowth.Denoiser, such as vg.NetworkDenoiser(...)",
    "factory:my_models:broken": "failed with FileNotFoundError: weights.pt at ",
    "factory:my_models:without_arguments": "failed with TypeError: without_arguments() got an unexpected keyword",
    "factory:my_models:number": "failed with TypeError: 'int' object is not callable",
    "factory:my_models:shapeless": "images of shape None: expected (1 or 3, height, width)",
    "factory:my_models:flat": "images of shape (64,): expected (1 or 3, height, width)",
    "factory:my_models:two_channels": "images of shape (2, 8, 8): expected (1 or 3, height, width)",
    "factory:my_models:endless": "images of shape (1, None, None): expected (1 or 3, height, width)",
}


@pytest.mark.parametrize("call", CALLS, ids=["load", "inspect"])
@pytest.mark.parametrize("name", REFUSED)
def test_refused_factories(call: Callable[..., object], name: str) -> None:
    said = problem(call, name)
    assert name in said
    assert REFUSED[name] in said


def test_the_line_of_an_error_comes_along_from_another_process() -> None:
    said = "".join(
        [
            "import pickle, my_models, torch\n",
            "from volgrowth.models.user_code import note_line\n",
            "try:\n    my_models.broken(None, None)\n",
            "except Exception as error:\n    note_line(error)\n    print(pickle.dumps(error).hex())\n",
        ]
    )
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    error = pickle.loads(bytes.fromhex(done.stdout))
    assert noted_line(error).startswith(" at ")
    assert noted_line(error).endswith(f"my_models.py, line {1 + MODULE.splitlines().index(BROKEN)}")
    assert noted_line(ValueError("of nobody's")) == ""
