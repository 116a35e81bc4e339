"""Folders as diffusers' own training scripts leave them, written by accelerate and diffusers themselves."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate  # type: ignore[import-untyped]
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

from tests.support.checkpoints import WEIGHTS, edit, problem, save_pipeline, unet
from volgrowth.errors import ModelError
from volgrowth.models import inspect_model, load_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What examples/unconditional_image_generation/train_unconditional.py leaves with --use_ema."""
    output = tmp_path_factory.mktemp("ddpm-model")
    accelerator = accelerate.Accelerator(cpu=True)
    network = unet()
    average = EMAModel(network.parameters(), model_cls=UNet2DModel, model_config=network.config)
    average.shadow_params = [1.5 * shadow for shadow in average.shadow_params]
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

    def save(models: list[Any], weights: list[object], folder: str) -> None:
        average.save_pretrained(f"{folder}/unet_ema")
        for model in models:
            model.save_pretrained(f"{folder}/unet")
            weights.pop()

    accelerator.register_save_state_pre_hook(save)
    accelerator.prepare(network, optimizer, schedule)
    accelerator.save_state(str(output / "checkpoint-500"))
    average.copy_to(network.parameters())
    DDPMPipeline(network, DDPMScheduler(beta_end=0.03)).save_pretrained(output)
    yield output
    accelerator.free_memory()


@pytest.fixture
def output(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "ddpm-model"))


def test_the_layout_is_the_real_one(trained: Path) -> None:
    names = {path.name for path in (trained / "checkpoint-500").iterdir()}
    assert {"unet", "unet_ema", "optimizer.bin", "scheduler.bin", "random_states_0.pkl"} <= names


def test_several_weights_are_a_choice_with_its_commands(output: Path) -> None:
    checkpoint = output / "checkpoint-500"
    for call in (inspect_model, load_model):
        said = problem(call, str(checkpoint))
        assert "several networks, unet (the weights of that step) and unet_ema (a moving average of" in said
        for name in ("unet", "unet_ema"):
            assert f"`volgrowth audit {checkpoint} DATA --output OUT --subfolder {name}`" in said


def test_the_schedule_is_taken_from_above_and_that_is_said(output: Path) -> None:
    """The averaged network of the checkpoint is that of the pipeline, which was saved from it."""
    whole = inspect_model(str(output))
    average = inspect_model(str(output), subfolder="checkpoint-500/unet_ema")
    below = inspect_model(str(output / "checkpoint-500"), subfolder="unet_ema")
    assert replace(below, name=str(output), files=average.files) == average  # the same of another folder's files
    assert average.unknown_settings == whole.unknown_settings == ()
    assert whole.notes == ()
    assert average.notes == (f"the scheduler is that of {output}, above unet_ema",)
    y, level = torch.randn(2, 1, 8, 8), torch.tensor(0.7)
    expected = load_model(str(output))(y, level)
    assert torch.equal(load_model(str(output), subfolder="checkpoint-500/unet_ema")(y, level), expected)
    assert not torch.equal(load_model(str(output / "checkpoint-500"), subfolder="unet")(y, level), expected)


def test_one_network_needs_no_choice(output: Path) -> None:
    shutil.rmtree(output / "checkpoint-500/unet_ema")
    (output / "model_index.json").unlink()
    info = inspect_model(str(output / "checkpoint-500"))
    assert info.notes[0] == f"{output / 'checkpoint-500'} has no model_index.json: the network in its unet is measured"
    assert info.notes[1] == f"the scheduler is that of {output}, above unet"


def test_a_training_that_was_cut_off_has_no_schedule(output: Path) -> None:
    (output / "model_index.json").unlink()
    shutil.rmtree(output / "scheduler")
    said = problem(inspect_model, str(output / "checkpoint-500"), subfolder="unet")
    assert "no scheduler_config.json in" in said
    assert "--base" in said
    shutil.rmtree(output / "unet")
    shutil.copytree(output / "checkpoint-500", output / "checkpoint-1000")
    said = problem(inspect_model, str(output))
    assert "holds the checkpoints checkpoint-500, checkpoint-1000 of a training" in said
    assert f"`volgrowth audit {output}/checkpoint-1000 DATA --output OUT`" in said


def test_a_folder_above_that_is_no_training_state_is_not_looked_at(tmp_path: Path) -> None:
    save_pipeline(tmp_path / "other")
    shutil.copytree(tmp_path / "other/unet", tmp_path / "other/mine/unet")
    assert "no scheduler_config.json in" in problem(inspect_model, str(tmp_path / "other/mine/unet"))


def test_averages_beside_a_pipeline_are_left_aside_and_named(tmp_path: Path) -> None:
    save_pipeline(tmp_path)
    unet(seed=3).save_pretrained(tmp_path / "unet_ema")
    (note,) = inspect_model(str(tmp_path)).notes
    assert note == "beside the pipeline's network these were left aside: unet_ema (--subfolder takes one)"
    assert inspect_model(str(tmp_path), subfolder="unet_ema").notes == ()


def test_a_plain_state_of_accelerate_names_what_to_save(tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    accelerator._custom_objects.clear()
    network = torch.nn.Linear(2, 2)
    accelerator._models = [network]
    accelerator.save_state(str(tmp_path / "state"))
    accelerator.free_memory()
    said = problem(inspect_model, str(tmp_path / "state"))
    assert "is a training state of accelerate with the weights model.safetensors without their configuration" in said
    assert "random_states" not in said


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_left_out_and_said(tmp_path: Path, prefix: str) -> None:
    save_pipeline(tmp_path)
    y, level = torch.randn(2, 1, 8, 8), torch.tensor(0.7)
    expected = load_model(str(tmp_path))(y, level)
    path = tmp_path / "unet" / WEIGHTS
    save_file({prefix + name: tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    torch.manual_seed(3)
    assert torch.equal(load_model(str(tmp_path))(y, level), expected)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.rand(1).equal(drawn)  # no weights were drawn only to be replaced, which takes their memory again
    info = inspect_model(str(tmp_path))
    assert info.parameters == 18_521
    assert info.notes == (
        "the tensors in unet carry the prefixes _orig_mod. or module. of torch.compile or DistributedDataParallel, "
        "which were left out",
    )


def shards(folder: Path) -> None:
    unet().save_pretrained(folder / "unet", max_shard_size="30KB")


def test_weights_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    save_pipeline(tmp_path)
    whole = (tmp_path / "unet" / WEIGHTS).read_bytes()
    shards(tmp_path)
    (tmp_path / "unet" / WEIGHTS).unlink(missing_ok=True)
    alone = inspect_model(str(tmp_path))
    assert (alone.parameters, alone.notes) == (18_521, ())
    (tmp_path / "unet" / WEIGHTS).write_bytes(whole)
    said = problem(inspect_model, str(tmp_path))
    assert f"has its weights twice, as {WEIGHTS} and in the pieces of {WEIGHTS}.index.json: delete those" in said


def test_pieces_that_no_index_names_are_left_aside_and_named(tmp_path: Path) -> None:
    save_pipeline(tmp_path)
    before = inspect_model(str(tmp_path))
    shards(tmp_path)
    stale = sorted(path.name for path in (tmp_path / "unet").glob("*-of-*.safetensors"))
    (tmp_path / "unet" / f"{WEIGHTS}.index.json").unlink()
    unet().save_pretrained(tmp_path / "x/other")
    shutil.copy(tmp_path / "x/other" / WEIGHTS, tmp_path / "unet")
    for name in stale:
        shutil.copy(tmp_path / "x/other" / WEIGHTS, tmp_path / "unet" / name)
    after = inspect_model(str(tmp_path))
    assert after.parameters == before.parameters
    assert after.notes == (f"of the weights in unet these were left aside: {', '.join(stale)}",)


def test_an_index_that_names_a_missing_piece_is_refused(tmp_path: Path) -> None:
    save_pipeline(tmp_path)
    (tmp_path / "unet" / WEIGHTS).unlink()
    shards(tmp_path)
    (tmp_path / "unet" / f"{WEIGHTS[:-12]}-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match=r"index\.json names .*-00002-of-00003\.safetensors, which is not beside it"):
        inspect_model(str(tmp_path))


def test_pickles_and_variants_beside_the_weights_are_named(tmp_path: Path) -> None:
    save_pipeline(tmp_path)
    torch.save({}, tmp_path / "unet/diffusion_pytorch_model.bin")
    unet(seed=5).half().save_pretrained(tmp_path / "unet", variant="fp16")
    edit(tmp_path / "unet/config.json")
    (note,) = inspect_model(str(tmp_path)).notes
    assert note == (
        "of the weights in unet these were left aside: diffusion_pytorch_model.bin, "
        "diffusion_pytorch_model.fp16.safetensors"
    )
