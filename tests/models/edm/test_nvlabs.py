"""NVlabs' pickles: what is read of them, and that nothing in them runs.

The pickles are written by stand-ins of `torch_utils.persistence` and `dnnlib` that reduce modules in the form of
NVlabs' own: a call of `_reconstruct_persistent_obj` on type, version, source, class name and state.
"""

import io
import json
import os
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

from tests.models.edm.test_model import CPU, FOURIER, TINY, TINY_NETWORK, save_edm
from tests.models.edm.test_unets import waves
from tests.support.checkpoints import problem
from volgrowth.models.edm import convert_pickle, inspect_edm

SOURCE = "import os\nopen('source-ran', 'w').close()\n"


class EasyDict(dict):
    __module__ = "dnnlib.util"


def _reconstruct_persistent_obj(meta: Any) -> None:
    raise AssertionError("the pickle's own reader ran")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


class Persistent(nn.Module):
    """A stand-in for NVlabs' decorated classes, whose pickle is a call with all attributes as state."""

    def __init__(self, name: str, **attributes: Any):
        super().__init__()
        self.class_name = name
        self.__dict__.update(attributes)

    def __reduce__(self) -> Any:
        state = {key: value for key, value in self.__dict__.items() if key != "class_name"}
        meta = EasyDict(type="class", version=6, module_src=SOURCE, class_name=self.class_name, state=state)
        return _reconstruct_persistent_obj, (meta,), None


@pytest.fixture(autouse=True)
def _nvlabs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Provide the modules that pickles name while they are written, and run the test in a folder of its own."""
    util, persistence = ModuleType("dnnlib.util"), ModuleType("torch_utils.persistence")
    util.EasyDict = EasyDict  # type: ignore[attr-defined]
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    for name, module in {"dnnlib.util": util, "torch_utils.persistence": persistence}.items():
        monkeypatch.setitem(sys.modules, name.partition(".")[0], ModuleType(name.partition(".")[0]))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.chdir(tmp_path)


def persistent(tensors: dict[str, Tensor], name: str, **attributes: Any) -> Persistent:
    """Build a tree of modules from names, with weights as parameters, and filters and frequencies as buffers."""
    module = Persistent(name, skip_scale=np.sqrt(0.5), **attributes)
    inner: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        first, _, rest = key.partition(".")
        if rest:
            inner.setdefault(first, {})[rest] = tensor
        elif first in ("weight", "bias"):
            module.register_parameter(first, nn.Parameter(tensor))
        else:
            module.register_buffer(first, tensor)
    for first, parts in inner.items():
        part = persistent(parts, "Part")
        # ladders are plain ModuleDicts, which torch pickles by itself
        module.add_module(first, nn.ModuleDict(dict(part.named_children())) if first in ("enc", "dec") else part)
    module.register_parameter("absent", None)
    return module


def content(kind: str = "EDMPrecond", tmp: str = "reference", **changes: Any) -> dict[str, Any]:
    """Return what NVlabs' training pickles, for the tiny network that `save_edm` puts into the folder `reference`."""
    tensors = save_edm(Path(tmp), kind, **changes)
    arguments = {**TINY, **TINY_NETWORK, **changes, "use_fp16": False, "dropout": 0.13, "sigma_max": float("inf")}
    if kind != "EDMPrecond":
        del arguments["sigma_max"]
    ema = persistent({f"model.{name}": tensor for name, tensor in tensors.items()}, kind, _init_kwargs=arguments)
    ema.register_buffer("u", torch.zeros(3))
    augment = Persistent("AugmentPipe", angles=np.arange(3.0), order=np.float64(1))
    loss = Persistent("EDMLoss", P_mean=-1.2)
    return {"ema": ema, "loss_fn": loss, "augment_pipe": augment, "dataset_kwargs": EasyDict(path="x", use_labels=True)}


def write(value: Any, name: str = "network.pkl", protocol: int | None = None) -> Path:
    path = Path(name)
    path.write_bytes(pickle.dumps(value, protocol))
    for module in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"):
        sys.modules.pop(module)
    return path


def refusal(path: Path) -> str:
    """Return the error for a pickle, after checking that nothing in it ran and that no files were left."""
    before = set(Path().iterdir())
    message = problem(convert_pickle, path, Path("out"), True)
    assert set(Path().iterdir()) == before
    return message


@pytest.mark.parametrize("protocol", [3, None])
@pytest.mark.parametrize("kind", ["EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond"])
def test_a_pickle_becomes_the_folder_it_was_made_from(kind: str, protocol: int | None) -> None:
    path = write(content(kind, sigma_data=0.7) if kind == "EDMPrecond" else content(kind), protocol=protocol)
    assert convert_pickle(path, Path("new/out"), True) == Path("new/out")
    assert "torch_utils" not in sys.modules
    assert not Path("source-ran").exists()
    expected, found = inspect_edm(Path("reference")), inspect_edm(Path("new/out"))
    assert (found.component.kind, found.image_shape) == (kind, (1, 8, 8))
    y, level = waves(2, 1, 8, 8), torch.tensor(0.5, dtype=torch.float64)
    first, second = (model.load(torch.float64, torch.float64, CPU) for model in (expected, found))
    assert first(y, level).equal(second(y, level))
    assert sorted(p.name for p in Path("new").rglob("*")) == ["config.json", "model.safetensors", "out"]


def test_frequencies_filters_and_names_survive() -> None:
    convert_pickle(write(content(**FOURIER, resample_filter=[1, 3, 3, 1])), Path("out"), True)
    found, expected = (load_file(f"{folder}/model.safetensors") for folder in ("out", "reference"))
    assert found.keys() == expected.keys() | {"u"}
    assert all(found[name].equal(expected[name]) for name in expected)


def test_defaults_that_the_weights_cannot_tell_are_written_down() -> None:
    convert_pickle(write(content()), Path("out"), True)
    values = json.loads(Path("out/config.json").read_text())
    assert values["sigma_data"] == 0.5
    assert values["_class_name"] == "EDMPrecond"
    assert "sigma_max" not in values


def test_views_and_shared_memory() -> None:
    """Transposed tensors, and tensors that share memory, keep their numbers."""
    value = content()
    layer = value["ema"].model.map_layer0
    wanted = layer.weight.detach().clone()
    layer.weight = nn.Parameter(torch.stack([wanted.T, wanted.T])[1].T)
    assert not layer.weight.is_contiguous()
    convert_pickle(write(value), Path("out"), True)
    assert_close(load_file("out/model.safetensors")["model.map_layer0.weight"], wanted, rtol=0, atol=0)


def test_a_pickle_is_read_only_when_allowed() -> None:
    message = problem(convert_pickle, write(content()), Path("out"), False)
    assert "can run any code as you" in message
    assert "--allow-pickle" in message
    assert not Path("out").exists()


class Call:
    """An object whose pickle is a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def inside(value: dict[str, Any], hostile: Any) -> dict[str, Any]:
    value["ema"].model.__dict__["note"] = hostile
    return value


def in_storage(hostile: Any) -> Call:
    """Put bytes that torch.load would run in the place of a tensor's."""
    buffer = io.BytesIO()
    torch.save(hostile, buffer)
    return Call(torch.storage._load_from_bytes, buffer.getvalue())


HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "os.system": (lambda: Call(os.system, "touch ran"), f"asks for {os.system.__module__}.system"),
    "eval": (lambda: Call(eval, "open('ran', 'w')"), "asks for builtins.eval"),
    "getattr": (lambda: Call(getattr, "a", "b"), "asks for builtins.getattr"),
    "inside": (lambda: inside(content(), Call(os.system, "touch ran")), "system, which no EDM network needs"),
    "in a storage": (lambda: inside(content(), in_storage(Call(os.system, "touch ran"))), "cannot be read as a pickle"),
    "torch.load": (lambda: Call(torch.load, "ran"), "asks for torch"),
    "other module": (lambda: {"ema": nn.Linear(2, 2)}, "asks for torch.nn.modules.linear.Linear"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickles_do_not_run(case: str) -> None:
    make, expected = HOSTILE[case]
    assert expected in refusal(write(make()))
    assert not Path("ran").exists()


def test_a_record_cannot_be_rebuilt_by_its_pickle() -> None:
    """The instruction BUILD on a class of the table would change the class for all later pickles."""
    stream = b"\x80\x04ccollections\nOrderedDict\n}(\x8c\x0b__getitem__\x8c\x03badub."
    Path("network.pkl").write_bytes(stream)
    message = refusal(Path("network.pkl"))
    assert "cannot be read as a pickle" in message
    assert "__setstate__" in message


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_truncated_pickles(share: float) -> None:
    path = write(content())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    message = refusal(path)
    assert "cannot be read as a pickle" in message
    assert "download it again" in message


def without(value: dict[str, Any], key: str) -> dict[str, Any]:
    del value["ema"].__dict__[key]
    return value


def recursive() -> dict[str, Any]:
    value = content()
    meta = value["ema"]
    meta._modules["model"]._modules["enc"]._modules["more"] = meta._modules["model"]._modules["enc"]
    return value


OTHER: dict[str, tuple[Callable[[], Any], str]] = {
    "a list": (lambda: [1, 2], "holds no network under 'ema'"),
    "a state dict": (lambda: OrderedDict(weight=torch.zeros(2)), "holds no network under 'ema'"),
    "no ema": (lambda: {"G_ema": content()["ema"]}, "holds no network under 'ema'"),
    "another network": (lambda: {"ema": Persistent("Generator")}, "holds a Generator: expected one of EDMPrecond"),
    "no arguments": (lambda: without(content(), "_init_kwargs"), "_init_kwargs"),
    "no modules": (lambda: without(content(), "_modules"), "_modules"),
    "endless": (recursive, "RecursionError"),
    "other arguments": (lambda: {"ema": persistent({}, "EDMPrecond", _init_kwargs={"a": 1})}, "lacks img_resolution"),
    "no weights": (
        lambda: {"ema": persistent({}, "EDMPrecond", _init_kwargs={**TINY, **TINY_NETWORK})},
        "hold 0 tensors",
    ),
}


@pytest.mark.parametrize("case", OTHER)
def test_pickles_of_something_else(case: str) -> None:
    make, expected = OTHER[case]
    value = make()
    message = refusal(write(value))
    assert expected in message
    assert "network.pkl" in message


def test_files_that_are_not_there_and_folders_that_are() -> None:
    assert "check the path" in problem(convert_pickle, Path("nothing.pkl"), Path("out"), True)
    path = write(content())
    assert "is not empty: name a new folder" in problem(convert_pickle, path, Path("reference"), True)
    Path("file").touch()
    assert "cannot be written" in problem(convert_pickle, path, Path("file/out"), True)
    Path("empty").mkdir()
    assert convert_pickle(path, Path("empty"), True) == Path("empty")
