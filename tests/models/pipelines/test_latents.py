"""Autoencoders against what diffusers' own pipelines and training scripts do with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.testing import assert_close

from tests.support.checkpoints import edit
from tests.support.pipelines import FLUX_RESOLUTION, LATENTS, autoencoder, build, quantiser
from volgrowth.models import NetworkDenoiser, inspect_model, load_model
from volgrowth.models.load import DType
from volgrowth.models.pipelines.latents import Latents, images_at_once

FAMILIES = ("ldm", "dit", "sd1", "sdxl", "sd3", "flux")
SCALES = {"dit": 0.18215, "sd1": 0.18215, "sdxl": 0.13025, "sd3": 1.5305, "flux": 0.3611}
SHIFTS = {"sd3": 0.0609, "flux": 0.1159}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    for family in FAMILIES:
        build(family, root / family)
    return {family: root / family for family in FAMILIES}


def load(folder: Path, dtype: DType = "float64") -> NetworkDenoiser:
    resolution = FLUX_RESOLUTION if folder.name == "flux" else None
    denoiser = load_model(str(folder), dtype=dtype, resolution=resolution)
    assert isinstance(denoiser, NetworkDenoiser)
    return denoiser


def images(count: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=dtype) * 2 - 1


def freeze(pipeline: Any, patch: pytest.MonkeyPatch) -> None:
    """Make a sampler stay at its first latents, so that the pipeline's output shows only how it decodes them."""
    kind = type(pipeline.scheduler)

    def stay(self: Any, output: Tensor, time: Any, sample: Tensor, *args: Any, **options: Any) -> Any:
        found = type("Found", (), {"prev_sample": sample, "__getitem__": lambda self, index: sample})
        return found()

    patch.setattr(kind, "step", stay)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux"])
def test_decoding_is_the_pipelines_own(
    pipelines: dict[str, Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = DiffusionPipeline.from_pretrained(pipelines[family], local_files_only=True).to(torch.float64)
    pipeline.set_progress_bar_config(disable=True)
    freeze(pipeline, monkeypatch)
    states = torch.randn(2, LATENTS, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    latents = pipeline._pack_latents(states, *states.shape) if family == "flux" else states
    options = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "np"}
    with torch.no_grad():
        shown = pipeline(["a cat"] * 2, latents=latents, height=16, width=16, **options).images
    expected = torch.from_numpy(np.asarray(shown)).permute(0, 3, 1, 2).double() * 2 - 1
    ours = load(pipelines[family]).render(states).clamp(-1, 1)
    assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_encoding_is_the_mode(pipelines: dict[str, Path], family: str) -> None:
    """(mode - shift) * scale, as diffusers' training scripts do with samples in place of the mode."""
    pipeline = DiffusionPipeline.from_pretrained(pipelines[family], local_files_only=True).to(torch.float64)
    with torch.no_grad():
        mode = pipeline.vae.encode(images()).latent_dist.mode()
    expected = (mode - SHIFTS.get(family, 0.0)) * SCALES[family]
    denoiser = load(pipelines[family])
    assert_close(denoiser.embed(images()), expected, rtol=1e-12, atol=1e-12)
    assert denoiser.embed(images()).equal(denoiser.embed(images()))
    with torch.no_grad():
        decoded = pipeline.vae.decode(mode).sample
    assert_close(denoiser.render(expected), decoded, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", ["sd1", "ldm"])
def test_a_device_without_memory_left_encodes_and_decodes_in_slices(
    pipelines: dict[str, Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = load(pipelines[family])
    codec, seen = denoiser.codec, list[int]()
    assert isinstance(codec, Latents)
    states, shown = codec.encode(images(5)), codec.decode(codec.encode(images(5)))

    def limited(work: Any) -> Any:
        def attempt(batch: Tensor, **options: Any) -> Any:
            seen.append(len(batch))
            if len(batch) > 2:
                raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
            return work(batch, **options)

        return attempt

    for name in ("encode", "decode"):
        monkeypatch.setattr(codec.vae, name, limited(getattr(codec.vae, name)))
    assert_close(denoiser.embed(images(5)), states, rtol=1e-12, atol=1e-12)
    assert_close(denoiser.render(states), shown, rtol=1e-12, atol=1e-12)
    assert seen == [5, 2, 2, 1] * 2


def test_a_gpu_gets_slices_by_the_size_of_images() -> None:
    """So that they are the same on all GPUs; a CPU gets whole batches."""
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [images_at_once((3, size, size), gpu) for size in (32, 512, 1024, 4096)] == [2048, 8, 2, 1]
    assert images_at_once((3, 512, 512), cpu) > 10**6


def test_quantised_latents_are_those_before_quantisation(pipelines: dict[str, Path]) -> None:
    """Latent diffusion is trained on them, and decoding quantises."""
    pipeline = DiffusionPipeline.from_pretrained(pipelines["ldm"], local_files_only=True).to(torch.float64)
    scale = pipeline.vqvae.config.scaling_factor
    with torch.no_grad():
        latents = pipeline.vqvae.encode(images()).latents
        decoded = pipeline.vqvae.decode(latents).sample
    denoiser = load(pipelines["ldm"])
    assert_close(denoiser.embed(images()), latents * scale, rtol=1e-12, atol=1e-12)
    assert_close(denoiser.render(latents * scale), decoded, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("family", "part"), [("sd1", "vae"), ("ldm", "vqvae")])
def test_configurations_from_before_the_scale(
    pipelines: dict[str, Path], tmp_path: Path, family: str, part: str
) -> None:
    """The first configurations omit the scale, and mean diffusers' default, 0.18215."""
    folder = tmp_path / family
    build(family, folder)
    edit(folder / part / "config.json", "scaling_factor", "shift_factor", "latents_mean", "latents_std")
    assert load(folder).embed(images()).equal(load(pipelines[family]).embed(images()))
    assert_close(load(folder).codec.scale, torch.tensor(0.18215).double(), rtol=1e-6, atol=0)  # type: ignore[union-attr]


def test_a_mean_and_a_deviation_for_each_channel() -> None:
    """SDXL-style `latents_mean` and `latents_std`: standardised, then scaled."""
    mean, deviation = [0.1, -0.2, 0.3, 0.0], [0.5, 2.0, 1.0, 3.0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = autoencoder(scaling_factor=0.5, latents_mean=mean, latents_std=deviation).double().eval()
    codec = Latents(vae, (3, 16, 16))
    with torch.no_grad():
        mode = vae.encode(images()).latent_dist.mode()
    shift, scale = (torch.tensor(value, dtype=torch.float64).reshape(1, 4, 1, 1) for value in (mean, deviation))
    assert_close(codec.encode(images()), 0.5 * (mode - shift) / scale, rtol=1e-12, atol=1e-12)
    states = torch.randn(2, LATENTS, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        expected = vae.decode(states * scale / 0.5 + shift).sample
    assert_close(codec.decode(states), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [autoencoder, quantiser])
def test_latents_of_an_image_do_not_depend_on_the_others(kind: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = Latents(kind().double().eval(), (3, 16, 16))
    together = codec.encode(images(3))
    for row in range(3):
        assert_close(codec.encode(images(3)[row : row + 1])[0], together[row], rtol=1e-10, atol=1e-10)


def test_autoencoders_stay_in_the_precision_of_states(pipelines: dict[str, Path]) -> None:
    """Some overflow in float16, and they run once for each image."""
    for dtype, expected in (("float64", torch.float64), ("float32", torch.float32), ("bfloat16", torch.float32)):
        denoiser = load(pipelines["sd1"], dtype)  # type: ignore[arg-type]
        codec = denoiser.codec
        assert isinstance(codec, Latents)
        parameters = list(codec.vae.parameters())
        assert {parameter.dtype for parameter in parameters} == {expected}
        assert not any(parameter.requires_grad for parameter in parameters)
        assert denoiser.embed(images(dtype=expected)).dtype == expected


def test_both_shapes_are_recorded(pipelines: dict[str, Path]) -> None:
    for family in FAMILIES:
        info = inspect_model(str(pipelines[family]), resolution=FLUX_RESOLUTION if family == "flux" else None)
        assert info.image_shape == (3, 16, 16)
        assert info.latent_shape == (3 if family == "ldm" else LATENTS, 8, 8)
        denoiser = load(pipelines[family])
        assert denoiser.embed(images()).shape[1:] == denoiser.image_shape == info.latent_shape
        assert denoiser.render(denoiser.embed(images())).shape[1:] == denoiser.pixel_shape == info.image_shape


@pytest.mark.parametrize("half", ["encode", "decode"])
def test_an_autoencoder_without_memory_gets_fewer_images(half: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers, and one image that does not fit is raised as what it is, for the micro-batch to be halved."""
    vae = autoencoder().double().eval()
    work, fits, seen = getattr(vae, half), [2], list[int]()

    def tight(batch: Tensor, **options: Any) -> Any:
        seen.append(len(batch))
        if len(batch) > fits[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(batch, **options)

    batch = images(5) if half == "encode" else torch.randn(5, LATENTS, 8, 8, dtype=torch.float64)
    expected = getattr(Latents(vae, (3, 16, 16)), half)(batch)
    monkeypatch.setattr(vae, half, tight)
    codec = Latents(vae, (3, 16, 16))
    assert_close(getattr(codec, half)(batch), expected, rtol=1e-9, atol=1e-9)
    assert seen == [5, 2, 2, 1]
    fits[0] = 0
    with pytest.raises(torch.OutOfMemoryError):
        getattr(codec, half)(batch)
