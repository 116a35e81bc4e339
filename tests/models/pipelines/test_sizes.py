"""Configurations that ask for more than the weights hold are refused before anything is allocated."""

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.checkpoints import WEIGHTS, edit, problem, save_pipeline, unet
from tests.support.pipelines import build
from volgrowth.models import inspect_model, load_model

Damage = Callable[[Path], object]


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """Let the process have 4 GiB of addresses more than it has now: a bomb would ask for far more."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**32, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def config(folder: str = "unet", **changes: Any) -> Damage:
    return lambda pipeline: edit(pipeline / folder / "config.json", **changes)


def nested(pipeline: Path) -> None:
    (pipeline / "unet/config.json").write_text("[" * 200_000)


def large(pipeline: Path) -> None:
    (pipeline / "unet/config.json").write_text(json.dumps({"x": "y" * 2**24}))


PIXELS: dict[str, tuple[Damage, str]] = {
    "channels": (
        config(block_out_channels=[65_536, 65_536], norm_num_groups=8),
        "asks for another network than the weights beside it: ",
    ),
    "images": (config(sample_size=60_000), "asks for images of 60000 x 60000 pixels: expected 1 to 16384 pixels"),
    "a wide image": (config(sample_size=[8, 10**9]), "asks for images of 8 x 1000000000 pixels"),
    "no image": (config(sample_size=-8), "asks for images of -8 x -8 pixels"),
    "half an image": (config(sample_size=8.5), "sample_size 8.5: expected one number, or height and width"),
    "an image in words": (config(sample_size="8"), "sample_size '8': expected one number"),
    "layers": (config(layers_per_block=10**9), "has layers_per_block 1000000000, and the weights beside it hold"),
    "blocks": (
        config(block_out_channels=[8] * 10**5, down_block_types=["DownBlock2D"] * 10**5),
        "and the weights beside it hold",
    ),
    "channels beyond numbers": (config(block_out_channels=[10**30, 8]), "makes no UNet2DModel ("),
    "channels in words": (config(block_out_channels="many"), "makes no UNet2DModel ("),
    "labels": (config(num_class_embeds=10**9), "asks for a network of "),
    "JSON in JSON": (nested, "cannot be read as JSON (maximum recursion depth exceeded"),
    "a large JSON": (large, "bytes, and 16,777,216 are the most that is read): download"),
    "in_channels of another kind": (config(in_channels={"a": 1}), "is not as diffusers writes it (TypeError"),
}


@pytest.mark.parametrize("kind", PIXELS)
def test_pixel_models(tmp_path: Path, kind: str) -> None:
    damage, message = PIXELS[kind]
    save_pipeline(tmp_path)
    inspect_model(str(tmp_path))
    damage(tmp_path)
    for call in (inspect_model, load_model):
        assert message in problem(call, str(tmp_path))


OTHERS: dict[str, tuple[str, Damage, str]] = {
    "autoencoder": ("dit", config("vae", block_out_channels=[65_536, 65_536], norm_num_groups=8), "another network"),
    "positions": (
        "dit",
        config("transformer", sample_size=2048),
        "has sample_size 2048: expected at most 65536 tokens",
    ),
    "positions of SD3": ("sd3", config("transformer", pos_embed_max_size=60_000), "has pos_embed_max_size 60000, and"),
    "tokens": ("sd1", config("text_encoder", vocab_size=10**10), "has vocab_size 10000000000, and the weights beside"),
    "encoder layers": ("sd1", config("text_encoder", num_hidden_layers=10**9), "has num_hidden_layers 1000000000"),
    "transformer layers": ("flux", config("transformer", num_layers=10**9), "has num_layers 1000000000, and"),
    "attention": ("sd1", config(cross_attention_dim=10**9), "asks for another network than the weights beside it"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_families(tmp_path: Path, kind: str) -> None:
    family, damage, message = OTHERS[kind]
    build(family, tmp_path)
    inspect_model(str(tmp_path))
    damage(tmp_path)
    assert message in problem(inspect_model, str(tmp_path))


def test_a_header_that_lies_about_its_tensors(tmp_path: Path) -> None:
    save_pipeline(tmp_path)
    path = tmp_path / "unet" / WEIGHTS
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].replace(b'"shape":[8]', b'"shape":[9]', 1)
    path.write_bytes(content[:8] + header + content[8 + length :])
    assert "unet cannot be loaded (" in problem(inspect_model, str(tmp_path))
    path.write_bytes((2**62).to_bytes(8, "little") + content[8:])
    assert "unet cannot be loaded (" in problem(inspect_model, str(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    save_pipeline(tmp_path, unet())
    path = tmp_path / "unet" / WEIGHTS
    tensors = load_file(path)
    tensors["conv_out.bias"] = torch.full_like(tensors["conv_out.bias"], value)
    save_file(tensors, path, metadata={"format": "pt"})
    said = problem(load_model, str(tmp_path))
    assert "hold NaN or infinity in 1 tensors, conv_out.bias among them: take a checkpoint from before" in said
