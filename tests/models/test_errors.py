"""Models that cannot be audited: what was given, what was expected, and the fix, in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.checkpoints import WEIGHTS, edit, problem, save_pipeline, unet
from volgrowth.errors import ModelError
from volgrowth.models import inspect_model, load_model

# both ways into the package refuse the same folders
CALLS: list[Callable[..., object]] = [load_model, inspect_model]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pipeline(tmp_path / "model")
    return tmp_path / "model"


def network_config(folder: Path) -> Path:
    return folder / "unet" / "config.json"


def scheduler_config(folder: Path) -> Path:
    return folder / "scheduler" / "scheduler_config.json"


def language_model(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertModel"], "hidden_size": 768}))


def pickles(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).unlink()
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")


def cut(size: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "unet" / WEIGHTS
        path.write_bytes(path.read_bytes()[:size])

    return damage


def text_config(folder: Path) -> None:
    network_config(folder).write_text("{")


def list_config(folder: Path) -> None:
    network_config(folder).write_text("[]")


def no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    network_config(folder).unlink()


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "neither pipeline nor network": (
        no_index,
        r"neither model_index\.json .* nor config\.json .*; save one with pipeline\.save_pretrained",
    ),
    "a language model": (
        language_model,
        r"holds something without _class_name, which .*: expected one of UNet2DModel, .* factory:module:function",
    ),
    "another network": (
        lambda f: edit(network_config(f), _class_name="UNet3DConditionModel"),
        "holds UNet3DConditionModel, which .*: expected one of UNet2DModel, .* factory",
    ),
    "another pipeline": (
        lambda f: edit(f / "model_index.json", _class_name="StableDiffusionInpaintPipeline"),
        "holds a StableDiffusionInpaintPipeline: expected one of DDPMPipeline, DDIMPipeline, .* factory",
    ),
    "a pipeline with code of its own": (
        lambda f: edit(f / "model_index.json", _class_name=["pipeline", "MyPipeline"]),
        r"brings code of its own \(MyPipeline\), which is not run: save it as",
    ),
    "a network with code of its own": (
        lambda f: edit(f / "model_index.json", unet=["unet.my_unet", "MyUNet"]),
        r"brings code of its own \(unet\), which is not run: save it as",
    ),
    "a pipeline without a unet": (
        lambda f: edit(f / "model_index.json", "unet", _class_name="DiTPipeline"),
        "names no unet and no transformer: save",
    ),
    "an index of another kind": (
        lambda f: edit(f / "model_index.json", unet=["UNet2DModel"]),
        r"brings code of its own \(unet\)",
    ),
    "class labels": (
        lambda f: edit(network_config(f), class_embed_type="timestep"),
        "sets class_embed_type to 'timestep': expected none",
    ),
    "fourier": (
        lambda f: edit(network_config(f), time_embedding_type="fourier"),
        "has the fourier time embedding .* scheduler is DDPMScheduler: expected both or neither",
    ),
    "no sample_size": (lambda f: edit(network_config(f), sample_size=None), "no sample_size: set it"),
    "sample_size of three": (lambda f: edit(network_config(f), sample_size=[8, 8, 8]), r"sample_size \[8, 8, 8\]: exp"),
    "latent channels": (
        lambda f: edit(network_config(f), in_channels=4, out_channels=4),
        "in_channels 4: expected 1 or 3",
    ),
    "too few outputs": (
        lambda f: edit(network_config(f), in_channels=3, out_channels=1),
        "out_channels 1: expected 3, or 6",
    ),
    "no network": (lambda f: network_config(f).unlink(), r"unet has no config\.json: expected what save_pretrained"),
    "no JSON": (text_config, r"config\.json cannot be read as JSON .*: download or save"),
    "a list": (list_config, "holds no JSON object: download or save"),
    "no scheduler": (
        lambda f: scheduler_config(f).unlink(),
        r"no scheduler_config\.json in .*: expected the scheduler that",
    ),
    "another scheduler": (
        lambda f: edit(scheduler_config(f), _class_name="LCMScheduler"),
        "_class_name 'LCMScheduler': expected one of DDPMScheduler, DDIMScheduler",
    ),
    "a scheduler of other networks": (
        lambda f: edit(scheduler_config(f), "prediction_type", _class_name="ScoreSdeVeScheduler"),
        "lacks the fourier time embedding that goes with a ScoreSdeVeScheduler",
    ),
    "flow prediction on a table": (
        lambda f: edit(
            scheduler_config(f), _class_name="DPMSolverMultistepScheduler", prediction_type="flow_prediction"
        ),
        "prediction_type 'flow_prediction': expected one of epsilon, v_prediction, sample",
    ),
    "another prediction": (
        lambda f: edit(scheduler_config(f), prediction_type="flow"),
        "prediction_type 'flow': expected one of epsilon, v_prediction, sample",
    ),
    "another beta schedule": (
        lambda f: edit(scheduler_config(f), beta_schedule="wavy"),
        r"scheduler_config.json makes no DDPMScheduler \(wavy .*\): save the scheduler again",
    ),
    "only pickles": (pickles, r"only the pickle diffusion_pytorch_model\.bin, .*: expected .*\.safetensors"),
    "no weights": (lambda f: (f / "unet" / WEIGHTS).unlink(), "has no weights: expected"),
    "half the weights": (cut(40_000), "unet cannot be .*: download or save"),
    "a piece of the header": (cut(100), "unet cannot be .*: download or save"),
    "empty weights": (cut(0), "unet cannot be .*: download or save"),
    "a short table of times": (
        lambda f: edit(network_config(f), time_embedding_type="learned", num_train_timesteps=500),
        "learned .*500.* 1000",
    ),
}


@pytest.mark.parametrize("call", CALLS, ids=["load", "inspect"])
@pytest.mark.parametrize(("damage", "message"), REFUSED.values(), ids=list(REFUSED))
def test_refused_folders(
    folder: Path, damage: Callable[[Path], object], message: str, call: Callable[..., object]
) -> None:
    call(str(folder))
    damage(folder)
    said = problem(call, str(folder))
    assert str(folder) in said
    with pytest.raises(ModelError, match=message):
        call(str(folder))


def drop_a_tensor(folder: Path) -> None:
    path = folder / "unet" / WEIGHTS
    tensors = load_file(path)
    del tensors["conv_out.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def fewer_layers(folder: Path) -> None:
    unet(layers_per_block=2).save_pretrained(folder / "unet")
    edit(network_config(folder), layers_per_block=1)


UNLOADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing tensor": (drop_a_tensor, r"lack 1 tensors .* conv_out\.weight .*: they belong to another config\.json"),
    "other shapes": (
        lambda f: edit(network_config(f), block_out_channels=[8, 16]),
        "asks for another network .* use the config",
    ),
    "a network of fewer layers": (
        fewer_layers,
        r"tensors .*: they belong to another config\.json",
    ),
    "an unknown block": (
        lambda f: edit(network_config(f), down_block_types=["A", "B"]),
        "config.json makes no UNet2DModel .*A",
    ),
    "betas above 1": (lambda f: edit(scheduler_config(f), beta_end=2.0), "scheduler.*: expected"),
    "no noise at all": (lambda f: edit(scheduler_config(f), beta_start=0.0), "scheduler.*: expected"),
}


@pytest.mark.parametrize(("damage", "message"), UNLOADABLE.values(), ids=list(UNLOADABLE))
def test_weights_that_do_not_fit(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    said = problem(load_model, str(folder))
    assert str(folder) in said
    with pytest.raises(ModelError, match=message):
        load_model(str(folder))


@pytest.mark.parametrize("call", CALLS, ids=["load", "inspect"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/model", "/no/such/model does not exist: expected a diffusers folder, a hub id such as"),
        ("./nothing", "./nothing does not exist"),
        ("a/b/c", "a/b/c does not exist"),
        ("google ddpm/cifar", "does not exist"),
        ("nobody/has-this", r"nobody/has-this is no local folder, and the hub did not give it \(\w+\): check the name"),
    ],
)
def test_nothing_there(call: Callable[..., object], name: str, message: str) -> None:
    assert name in problem(call, name)
    with pytest.raises(ModelError, match=message):
        call(name)


def test_a_revision_nobody_has_is_named() -> None:
    assert "did not give it at revision v7 (" in problem(load_model, "nobody/has-this", revision="v7")


@pytest.mark.parametrize("call", CALLS, ids=["load", "inspect"])
def test_a_file_instead_of_a_folder(folder: Path, call: Callable[..., object]) -> None:
    path = str(folder / "unet" / WEIGHTS)
    assert f"{path} is a file: expected the diffusers folder it belongs to" in problem(call, path)


@pytest.mark.parametrize("call", CALLS, ids=["load", "inspect"])
def test_a_missing_subfolder_names_those_there_are(folder: Path, call: Callable[..., object]) -> None:
    said = problem(call, str(folder), subfolder="ema")
    assert said == f"{folder} has no subfolder 'ema': it holds scheduler, unet"


def test_other_precisions(folder: Path) -> None:
    said = problem(load_model, str(folder), dtype="double")
    assert said == "dtype is 'double': expected one of float32, float64, bfloat16, float16"


def test_pickles_are_never_opened(folder: Path) -> None:
    """A pickle that would run code when it is loaded, beside a configuration that is right."""

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (folder / "exploded",)  # type: ignore[return-value]

    pickles(folder)
    torch.save({"conv_in.weight": Bomb()}, folder / "unet" / "diffusion_pytorch_model.bin")
    for call in CALLS:
        problem(call, str(folder))
    assert not (folder / "exploded").exists()
