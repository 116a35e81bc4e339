"""Folders that hold a model, in every layout, and what is read from them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from tests.support.checkpoints import WEIGHTS, edit, flatten, save_pipeline, unet
from volgrowth.models import NetworkDenoiser, inspect_model, load_model
from volgrowth.models.load import DType
from volgrowth.numerics import DDPMSchedule

LEVEL = torch.tensor(0.3, dtype=torch.float64)


def images(channels: int = 1, size: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(3), dtype=dtype)


def load(folder: Path | str, dtype: DType = "float32", subfolder: str | None = None) -> NetworkDenoiser:
    denoiser = load_model(str(folder), dtype=dtype, subfolder=subfolder)
    assert isinstance(denoiser, NetworkDenoiser)
    return denoiser


def module(denoiser: NetworkDenoiser) -> torch.nn.Module:
    """Return the network that a loaded denoiser's function encloses."""
    cells = getattr(denoiser.network, "__closure__", None) or ()
    return next(cell.cell_contents for cell in cells if isinstance(cell.cell_contents, torch.nn.Module))


def bare(pipeline: Path, folder: Path) -> tuple[Path, None]:
    """Save a UNet folder with the scheduler's file in it."""
    shutil.copytree(pipeline / "unet", folder)
    shutil.copy(pipeline / "scheduler" / "scheduler_config.json", folder)
    return folder, None


def below(pipeline: Path, folder: Path) -> tuple[Path, None]:
    shutil.copytree(pipeline / "unet", folder)
    shutil.copytree(pipeline / "scheduler", folder / "scheduler")
    return folder, None


def nested(pipeline: Path, folder: Path) -> tuple[Path, str]:
    shutil.copytree(pipeline, folder / "runs" / "last")
    return folder, "runs/last"


LAYOUTS: dict[str, Callable[[Path, Path], tuple[Path, str | None]]] = {
    "pipeline": lambda pipeline, folder: (pipeline, None),
    "old": lambda pipeline, folder: (flatten(pipeline, folder), None),
    "bare": bare,
    "bare, scheduler below": below,
    "bare, scheduler beside": lambda pipeline, folder: (pipeline / "unet", None),
    "its unet": lambda pipeline, folder: (pipeline, "unet"),
    "deep in a folder": nested,
}


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_model(tmp_path: Path, layout: str, sampler: str) -> None:
    pipeline, other = tmp_path / "pipeline", tmp_path / "other"
    network = save_pipeline(pipeline, sampler=sampler, beta_schedule="scaled_linear").eval()
    folder, subfolder = LAYOUTS[layout](pipeline, other)
    denoiser = load(folder, subfolder=subfolder)
    time = denoiser.schedule.time(LEVEL)
    alpha = (1 + LEVEL**2).rsqrt().float()
    with torch.no_grad():
        expected = network(alpha * images(), time.float().expand(3)).sample
    assert_close(denoiser.noise(images(), LEVEL), expected, rtol=1e-5, atol=1e-6)

    info = inspect_model(str(folder), subfolder=subfolder)
    assert info.image_shape == denoiser.image_shape == (1, 8, 8)
    assert info.parameters == network.num_parameters() == 18_521
    assert info.kind == "UNet2DModel"
    assert info.hash == inspect_model(str(pipeline)).hash


@pytest.mark.parametrize(("channels", "size"), [(1, 12), (3, 8), (3, (8, 12))])
def test_shapes(tmp_path: Path, channels: int, size: int | tuple[int, int]) -> None:
    save_pipeline(tmp_path, unet(in_channels=channels, out_channels=channels, sample_size=size))
    height, width = (size, size) if isinstance(size, int) else size
    denoiser = load(tmp_path)
    assert denoiser.image_shape == inspect_model(str(tmp_path)).image_shape == (channels, height, width)
    y = torch.randn(2, channels, height, width)
    assert denoiser(y, LEVEL).shape == y.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_is_that_of_weights_and_states(tmp_path: Path, dtype: torch.dtype) -> None:
    network = save_pipeline(tmp_path).eval()
    denoiser = load(tmp_path, "float64" if dtype is torch.float64 else "float32")
    assert denoiser.dtype == dtype
    assert {p.dtype for p in module(denoiser).parameters()} == {dtype}
    y = images(dtype=dtype)
    output = denoiser.noise(y, LEVEL)
    assert output.dtype == denoiser(y, LEVEL).dtype == dtype
    alpha, time = (1 + LEVEL**2).rsqrt().to(dtype), denoiser.schedule.time(LEVEL).to(dtype)
    with torch.no_grad():
        expected = network.to(dtype)(alpha * y, time.expand(3)).sample
    assert_close(output, expected, rtol=0, atol=1e-6 if dtype is torch.float32 else 1e-12)


def test_weights_are_frozen_and_dropout_is_off(tmp_path: Path) -> None:
    save_pipeline(tmp_path, unet(dropout=0.5))
    denoiser = load(tmp_path)
    network = module(denoiser)
    assert not any(p.requires_grad for p in network.parameters())
    assert not any(m.training for m in network.modules())
    assert any(isinstance(m, torch.nn.Dropout) and m.p == 0.5 for m in network.modules())
    assert denoiser.noise(images(), LEVEL).equal(denoiser.noise(images(), LEVEL))
    y = images().requires_grad_()
    denoiser.noise(y, LEVEL).sum().backward()  # but gradients reach the images, as traces need
    assert y.grad is not None
    assert y.grad.abs().max() > 0


def test_learned_time_embeddings_are_looked_up(tmp_path: Path) -> None:
    network = unet(time_embedding_type="learned", num_train_timesteps=1000).eval()
    save_pipeline(tmp_path, network)
    denoiser = load(tmp_path)
    level = denoiser.schedule.noise_level(torch.tensor(41.3, dtype=torch.float64))
    alpha = (1 + level**2).rsqrt().float()
    with torch.no_grad():
        expected, next_label = (network(alpha * images(), torch.full((3,), t)).sample for t in (41, 42))
    assert_close(denoiser.noise(images(), level), expected, rtol=1e-5, atol=1e-6)
    assert (next_label - expected).abs().max() > 1e-4
    for beyond in (1e-4, 1e4):  # clamped, or the table would be read outside
        denoiser.noise(images(), torch.tensor(beyond, dtype=torch.float64))


def test_a_predicted_variance_is_left_out(tmp_path: Path) -> None:
    network = save_pipeline(tmp_path, unet(in_channels=3, out_channels=6)).eval()
    denoiser = load(tmp_path)
    alpha, time = (1 + LEVEL**2).rsqrt().float(), denoiser.schedule.time(LEVEL).float()
    with torch.no_grad():
        expected = network(alpha * images(3), time.expand(3)).sample[:, :3]
    assert_close(denoiser.noise(images(3), LEVEL), expected, rtol=1e-5, atol=1e-6)


def test_weights_in_several_files(tmp_path: Path) -> None:
    network = save_pipeline(tmp_path)
    whole, parameters = load(tmp_path).noise(images(), LEVEL), inspect_model(str(tmp_path)).parameters
    shutil.rmtree(tmp_path / "unet")
    network.save_pretrained(tmp_path / "unet", max_shard_size="30KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    assert load(tmp_path).noise(images(), LEVEL).equal(whole)
    assert inspect_model(str(tmp_path)).parameters == parameters


def test_variants_beside_the_weights_are_left_alone(tmp_path: Path) -> None:
    save_pipeline(tmp_path)
    before = inspect_model(str(tmp_path))
    plain = load(tmp_path).noise(images(), LEVEL)
    unet(seed=5).half().save_pretrained(tmp_path / "unet", variant="fp16")
    assert (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").exists()
    edit(tmp_path / "unet" / "config.json")
    assert inspect_model(str(tmp_path)).parameters == before.parameters
    assert load(tmp_path).noise(images(), LEVEL).equal(plain)


def test_half_precision_weights_are_loaded_in_the_precision_asked_for(tmp_path: Path) -> None:
    save_pipeline(tmp_path, unet().half())
    denoiser = load(tmp_path)
    assert {p.dtype for p in module(denoiser).parameters()} == {torch.float32}
    assert denoiser.noise(images(), LEVEL).dtype == torch.float32


def test_attention_weights_under_their_old_names(tmp_path: Path) -> None:
    """Repositories from before diffusers 0.15, google/ddpm-cifar10-32 among them, name them query, key, value."""
    save_pipeline(tmp_path)
    expected = load(tmp_path).noise(images(), LEVEL)
    path = tmp_path / "unet" / WEIGHTS
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(path).items():
        for new_part, old_part in old.items():
            name = name.replace(f".{new_part}.", f".{old_part}.")
        tensors[name] = tensor
    assert any(".query." in name for name in tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    assert load(tmp_path).noise(images(), LEVEL).equal(expected)


def test_configurations_that_leave_defaults_out(tmp_path: Path) -> None:
    """The first diffusers wrote no prediction_type, no sample clipping and no embedding types."""
    save_pipeline(tmp_path)
    expected = load(tmp_path).noise(images(), LEVEL)
    scheduler = tmp_path / "scheduler" / "scheduler_config.json"
    edit(scheduler, "prediction_type", "beta_schedule", "rescale_betas_zero_snr", "timestep_spacing", "trained_betas")
    keys = ("time_embedding_type", "class_embed_type", "num_class_embeds", "center_input_sample", "dropout")
    edit(tmp_path / "unet" / "config.json", *keys)
    assert "prediction_type" not in json.loads(scheduler.read_text())
    assert load(tmp_path).noise(images(), LEVEL).equal(expected)


def test_the_digest_names_weights_and_configurations(tmp_path: Path) -> None:
    save_pipeline(tmp_path / "model")

    def digest(name: str) -> str:
        return inspect_model(str(tmp_path / name)).hash

    first = digest("model")
    assert first == digest("model")
    assert first.startswith("sha256:")
    assert len(first) == len("sha256:") + 64
    shutil.copytree(tmp_path / "model", tmp_path / "elsewhere")
    assert digest("elsewhere") == first

    shutil.copytree(tmp_path / "model", tmp_path / "weights")
    path = tmp_path / "weights" / "unet" / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    shutil.copytree(tmp_path / "model", tmp_path / "betas")
    edit(tmp_path / "betas" / "scheduler" / "scheduler_config.json", beta_end=0.03)
    shutil.copytree(tmp_path / "model", tmp_path / "network")
    edit(tmp_path / "network" / "unet" / "config.json", norm_eps=1e-6)
    digests = [first, *(digest(name) for name in ("weights", "betas", "network"))]
    assert len(set(digests)) == 4


def test_the_schedule_is_the_checkpoints(tmp_path: Path) -> None:
    save_pipeline(tmp_path, beta_start=1e-3, beta_end=0.05, num_train_timesteps=200)
    schedule = load(tmp_path).schedule
    assert isinstance(schedule, DDPMSchedule)
    table = (1 - torch.linspace(1e-3, 0.05, 200).double()).cumprod(0)
    alpha, _ = schedule(torch.arange(200, dtype=torch.float64))
    assert_close(alpha**2, table, rtol=1e-6, atol=0)


def test_paths_may_begin_at_home_or_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pipeline(tmp_path / "runs" / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    hashes = {inspect_model(name).hash for name in ("~/runs/model", "runs/model", str(tmp_path / "runs/model"))}
    assert len(hashes) == 1
