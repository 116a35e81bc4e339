"""Tiny checkpoints with random weights, as diffusers writes them and as old repositories hold them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from volgrowth.errors import ModelError

PIPELINES = {"ddpm": (DDPMPipeline, DDPMScheduler), "ddim": (DDIMPipeline, DDIMScheduler)}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def unet(seed: int = 0, **changes: Any) -> UNet2DModel:
    """An 8x8 network of 18,521 parameters with group norm and attention."""
    config = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DModel(**{**config, **changes})


def save_pipeline(
    folder: Path, network: UNet2DModel | None = None, sampler: str = "ddpm", **scheduler: Any
) -> UNet2DModel:
    """A folder as `pipeline.save_pretrained` writes it; returns its network."""
    network = network or unet()
    pipeline_class, scheduler_class = PIPELINES[sampler]
    pipeline_class(network, scheduler_class(**scheduler)).save_pretrained(folder)
    return network


def flatten(pipeline: Path, folder: Path) -> Path:
    """The same pipeline as old repositories hold it: everything at the top level."""
    folder.mkdir()
    files = ("model_index.json", "unet/config.json", f"unet/{WEIGHTS}", "scheduler/scheduler_config.json")
    for name in files:
        shutil.copy(pipeline / name, folder)
    return folder


def edit(path: Path, *drop: str, **changes: Any) -> None:
    """Change entries of a JSON file, and drop some."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in drop}))


def problem(call: Callable[..., object], *args: Any, **options: Any) -> str:
    """What a call says when it refuses a model: one sentence, with the fix after a colon or a semicolon."""
    try:
        result = call(*args, **options)
    except ModelError as error:
        message = str(error)
        assert "\n" not in message, message
        assert ":" in message or ";" in message, message
        assert not message.endswith("."), message
        return message
    raise AssertionError(f"{args} made {result}: expected a ModelError")
