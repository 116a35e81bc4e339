"""The oracle through the adapter: in pipelines of every family, networks that are exact for Gaussian states.

The network's class answers, in diffusers' own signature, what a perfectly trained one would of states that are Gaussian
with a mean and a variance that depend on the condition it is shown. alpha and sigma are taken here from what the
scheduler says of the timestep seen.
"""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor
from torch.testing import assert_close

from tests.support.pipelines import FAMILY_NAMES, FLUX_RESOLUTION, TEXT_FAMILIES, build, scaled_linear
from volgrowth.audit.scoring.understanding import NoisyStates, examine
from volgrowth.audit.workers.fitting import BatchSize
from volgrowth.models import NetworkDenoiser, load_model
from volgrowth.models.pipelines.schedulers import PREDICTIONS
from volgrowth.numerics import Denoiser, trace_growth, volume_growth

TABLES = [(family, kind) for family in FAMILY_NAMES[:-2] if family != "score-sde-ve" for kind in PREDICTIONS]
CASES = [*TABLES, ("score-sde-ve", "score"), ("sd3", "flow_prediction"), ("flux", "flow_prediction")]
CONDITIONS: dict[str, list[Any]] = {"caption": ["a cat", "two dogs in a park", None], "class": [7, 2, None]}
AXES = (3, 17, 60)
STEPS = 5

KINDS = (
    diffusers.UNet2DModel,
    diffusers.UNet2DConditionModel,
    diffusers.DiTTransformer2DModel,
    diffusers.SD3Transformer2DModel,
    diffusers.FluxTransformer2DModel,
)
SIGNATURES = {kind: inspect.signature(kind.forward) for kind in KINDS}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(seen: dict[str, Any], shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Return mean and variance of states, (B, *shape), under the condition that a network is given."""
    signal = torch.zeros(1, dtype=torch.float64)
    if seen.get("class_labels") is not None:
        signal = seen["class_labels"].double() / 10
    for name in ("encoder_hidden_states", "pooled_projections"):
        if seen.get(name) is not None:
            signal = signal + seen[name].flatten(1)[:, ::8].mean(1)
    if added := seen.get("added_cond_kwargs"):
        assert added["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * len(added["time_ids"])
        signal = signal + added["text_embeds"][:, 0]
    signal = signal[:, None, None, None]
    ramp = torch.linspace(0, 1, shape.numel(), dtype=torch.float64).reshape(shape)
    return ramp - 0.5 + signal * ramp, 0.8 * ramp * signal.exp()


def exact_forward(
    kind: type, prediction: str, scales: Callable[[Tensor], tuple[Tensor, Tensor]], told: list[Any]
) -> Any:
    """Return a perfect replacement for `kind.forward`, which collects its arguments in `told`."""
    signature = SIGNATURES[kind]

    def forward(self: Any, *args: Any, **options: Any) -> tuple[Tensor]:
        seen = signature.bind(self, *args, **options).arguments
        assert seen["return_dict"] is False
        told.append(seen)
        x = seen["sample"] if "sample" in seen else seen["hidden_states"]
        if kind is diffusers.FluxTransformer2DModel:
            x = diffusers.FluxPipeline._unpack_latents(x, FLUX_RESOLUTION, FLUX_RESOLUTION, 2)
        mean, variance = moments(seen, x.shape[1:])
        assert seen["timestep"].shape == x.shape[:1]
        alpha, sigma = (scale[:, None, None, None] for scale in scales(seen["timestep"]))
        clean = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)
        noise = (x - alpha * clean) / sigma
        output = {
            "sample": clean,
            "epsilon": noise,
            "v_prediction": alpha * noise - sigma * clean,
            "score": -noise / sigma,
            "flow_prediction": noise - clean,
        }[prediction]
        if kind is diffusers.FluxTransformer2DModel:
            output = diffusers.FluxPipeline._pack_latents(output, *output.shape)
        if kind is diffusers.DiTTransformer2DModel:
            output = torch.cat([output, torch.ones_like(output)], 1)  # it predicts a variance too
        return (output,)

    return forward


def table_scales(scheduler: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    table = (1 - scheduler.betas.double()).cumprod(0)

    def scales(labels: Tensor) -> tuple[Tensor, Tensor]:
        assert_close(labels, labels.round(), rtol=0, atol=1e-6)
        chosen = table[labels.round().long()]
        return chosen.sqrt(), (1 - chosen).sqrt()

    return scales


def own_levels(family: str, scheduler: Any, scales: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Return rising noise levels at the scheduler's own timesteps, without pure noise."""
    if family == "score-sde-ve":
        scheduler.set_timesteps(STEPS)
        scheduler.set_sigmas(STEPS)
        return scheduler.discrete_sigmas.double()
    if family == "flux":
        scheduler.set_timesteps(STEPS + 1, mu=calculate_shift(16))
    else:
        scheduler.set_timesteps(STEPS + 1)
    times = scheduler.timesteps.double().flip(0)[:-1]
    alpha, sigma = scales(times / 1000 if family == "flux" else times)
    return sigma / alpha


class Exact:
    """A loaded pipeline whose network is exact."""

    def __init__(self, family: str, prediction: str, folder: Path, patch: pytest.MonkeyPatch):
        self.told: list[dict[str, Any]] = []
        is_table = prediction in PREDICTIONS
        scheduler = scaled_linear(prediction_type=prediction) if is_table else None
        pipeline = build(family, folder, scheduler=scheduler)
        kind = type(getattr(pipeline, "unet", None) or pipeline.transformer)
        scales: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
            "score-sde-ve": lambda level: (torch.ones_like(level), level),
            "sd3": lambda time: (1 - time / 1000, time / 1000),
            "flux": lambda time: (1 - time, time),
        }
        chosen = table_scales(pipeline.scheduler) if is_table else scales[family]
        # in [-1, 1], where the network is made for [0, 1]
        self.unit = family == "score-sde-ve"
        self.levels = own_levels(family, pipeline.scheduler, chosen) * (2 if self.unit else 1)
        patch.setattr(kind, "forward", exact_forward(kind, prediction, chosen, self.told))
        resolution = FLUX_RESOLUTION if family == "flux" else None
        denoiser = load_model(str(folder), dtype="float64", resolution=resolution)
        assert isinstance(denoiser, NetworkDenoiser)
        assert denoiser.image_shape is not None
        self.denoiser, self.shape = denoiser, denoiser.image_shape
        self.values = CONDITIONS.get(denoiser.condition or "", [])

    def conditioned(self) -> tuple[Denoiser, Tensor, Tensor]:
        """With mean and variance of the states of three images."""
        denoiser = self.denoiser.given(self.values) if self.values else self.denoiser
        self.told.clear()
        denoiser(torch.zeros(3, *self.shape, dtype=torch.float64), self.levels[0])
        mean, variance = (value.expand(3, *self.shape) for value in moments(self.told[0], torch.Size(self.shape)))
        if self.values:
            assert (mean[0] - mean[1]).abs().max() > 1e-3
            assert (variance[0] - variance[2]).abs().max() > 1e-3
        return (denoiser, 2 * mean - 1, 4 * variance) if self.unit else (denoiser, mean, variance)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def exact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exact]:
    """Yield one case at a time, since networks of several cases share a class."""
    family, prediction = request.param
    with pytest.MonkeyPatch.context() as patch:
        yield Exact(family, prediction, tmp_path_factory.mktemp("exact"), patch)


def axes(shape: tuple[int, ...], batch: int) -> Tensor:
    """Return unit tangents along some axes of each image."""
    size = torch.Size(shape).numel()
    frame = torch.eye(size, dtype=torch.float64)[list(AXES)]
    return frame.reshape(1, len(AXES), *shape).expand(batch, len(AXES), *shape)


def expected_growth(levels: Tensor, variance: Tensor) -> Tensor:
    """A step from level t to level s multiplies axis i by 1 + (s - t) t / (variance_i + t^2)."""
    chosen = variance.flatten(1)[:, None, AXES]
    t, s = levels[:-1, None], levels[1:, None]
    return (1 + (s - t) * t / (chosen + t**2)).log().sum(2).cumsum(1)


def test_posterior_under_conditions(exact: Exact) -> None:
    denoiser, mean, variance = exact.conditioned()
    y = mean + randn(3, *exact.shape)
    for level in exact.levels[[0, 2, -1]]:
        clean = mean + variance / (variance + level**2) * (y - mean)
        assert_close(denoiser(y, level), clean, rtol=1e-6, atol=1e-6)
        assert_close(denoiser.noise(y, level), (y - clean) / level, rtol=1e-6, atol=1e-6)


def test_volume_growth_at_the_schedulers_own_timesteps(exact: Exact) -> None:
    denoiser, mean, variance = exact.conditioned()
    schedule = exact.denoiser.schedule
    times = schedule.time(exact.levels)
    assert_close(exact.denoiser.sampling_levels(STEPS + (not exact.unit))[:STEPS], exact.levels, rtol=1e-5, atol=0)
    growth = volume_growth(
        denoiser,
        mean + randn(3, *exact.shape),
        schedule=schedule,
        times=times,
        solver="ddim",
        tangents=axes(exact.shape, 3),
        coordinates="y",
    )
    assert_close(growth.log_volume, expected_growth(exact.levels, variance), rtol=0, atol=1e-6)
    assert not growth.above_ceiling.any()


def test_differences_ask_each_point_under_its_own_images_condition(exact: Exact) -> None:
    denoiser, mean, variance = exact.conditioned()
    growth = volume_growth(
        denoiser,
        mean + randn(3, *exact.shape),
        schedule=exact.denoiser.schedule,
        times=exact.denoiser.schedule.time(exact.levels),
        solver="ddim",
        derivative="difference",
        tangents=axes(exact.shape, 3),
        coordinates="y",
    )
    assert_close(growth.log_volume, expected_growth(exact.levels, variance), rtol=0, atol=1e-6)


def test_trace_growth(exact: Exact) -> None:
    denoiser, mean, variance = exact.conditioned()
    traces = trace_growth(denoiser, mean + randn(3, *exact.shape), exact.levels)
    square = exact.levels[:, None] ** 2
    rate = (square / (variance.flatten(1)[:, None] + square)).sum(2)
    assert_close(traces.rate, rate, rtol=1e-6, atol=0)
    assert_close(traces.log_volume, torch.trapezoid(rate, exact.levels.log()), rtol=1e-6, atol=0)


def test_every_family_is_understood(exact: Exact) -> None:
    """On states of its own, in latents and under conditions: what is right must not be refused."""
    _, mean, variance = exact.conditioned()
    states = (mean + variance.sqrt() * randn(8, 3, *exact.shape)).flatten(0, 1)
    images = NoisyStates(exact.denoiser, states, exact.values * 8 or None, 0, BatchSize(12))
    check = examine(images, exact.levels[:4].tolist())
    assert check.verdict == "right", check
    assert all(abs(fit.gain) < 0.05 for fit in check.levels)


def test_without_given_it_is_the_null_condition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for family in ("dit", *TEXT_FAMILIES):
        prediction = "flow_prediction" if family in ("sd3", "flux") else "epsilon"
        with monkeypatch.context() as patch:
            exact = Exact(family, prediction, tmp_path / family, patch)
            y, level = randn(2, *exact.shape), exact.levels[1]
            plain = exact.denoiser(y, level)
            assert plain.equal(exact.denoiser.given([None, None])(y, level))
            assert (plain - exact.denoiser.given(exact.values[:2])(y, level)).abs().max() > 1e-4


def test_flux_is_told_positions_and_guidance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = Exact("flux", "flow_prediction", tmp_path, monkeypatch)
    exact.denoiser(randn(2, *exact.shape), exact.levels[1])
    (seen,) = exact.told
    ids = diffusers.FluxPipeline._prepare_latent_image_ids(2, 4, 4, "cpu", torch.float64)
    assert seen["img_ids"].equal(ids)
    assert seen["txt_ids"].equal(torch.zeros(512, 3, dtype=torch.float64))
    assert seen["guidance"].tolist() == [1.0, 1.0]


def test_flux_without_guidance_reads_fewer_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schnell takes at most 256 tokens: https://huggingface.co/black-forest-labs/FLUX.1-schnell."""
    build("flux", tmp_path, guidance_embeds=False)
    denoiser = load_model(str(tmp_path), dtype="float64", resolution=FLUX_RESOLUTION)
    seen: list[dict[str, Any]] = []
    kind = diffusers.FluxTransformer2DModel
    monkeypatch.setattr(kind, "forward", exact_forward(kind, "flow_prediction", lambda t: (1 - t, t), seen))
    assert denoiser.image_shape is not None
    denoiser(randn(1, *denoiser.image_shape), torch.tensor(0.5, dtype=torch.float64))
    assert seen[0]["guidance"] is None
    assert seen[0]["encoder_hidden_states"].shape[1] == len(seen[0]["txt_ids"]) == 256
    assert denoiser.overflow(["a" * 300]) == [46]  # letters, a word mark and an end
