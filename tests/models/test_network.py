"""The adapter by oracles: networks that are exact for Gaussian data, and diffusers' own schedulers."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor
from torch.testing import assert_close

from tests.support.checkpoints import PIPELINES, save_pipeline, unet
from volgrowth.models import NetworkDenoiser, load_model
from volgrowth.models.network import Compiled
from volgrowth.models.parameterizations import Scheduled
from volgrowth.models.pipelines import model_folder
from volgrowth.models.pipelines.families import DiT, UNet2D
from volgrowth.models.pipelines.schedulers import PREDICTIONS
from volgrowth.numerics import DDPMSchedule, trace_growth, volume_growth
from volgrowth.numerics.flow import ddim_sample

DDPM = DDPMSchedule((1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0))
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
KINDS = list(product(PREDICTIONS, BETA_SCHEDULES, PIPELINES))
MEAN = torch.linspace(-0.5, 0.5, 64, dtype=torch.float64).reshape(1, 8, 8)
VARIANCE = torch.linspace(0, 0.8, 64, dtype=torch.float64).reshape(1, 8, 8)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_output(prediction_type: str, alphas_cumprod: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a perfectly trained network for x = alpha x_0 + sigma e with x_0 ~ N(MEAN, diag VARIANCE)."""

    def network(x: Tensor, labels: Tensor) -> Tensor:
        assert labels.shape == (len(x),)
        assert_close(labels, labels.round(), rtol=0, atol=1e-6)
        alpha = alphas_cumprod[labels.round().long()].sqrt()[:, None, None, None]
        sigma = (1 - alpha**2).sqrt()
        clean = MEAN + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (x - alpha * MEAN)
        noise = (x - alpha * clean) / sigma
        return {"sample": clean, "epsilon": noise, "v_prediction": alpha * noise - sigma * clean}[prediction_type]

    return network


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def exact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[NetworkDenoiser, Tensor]:
    """Load a checkpoint, replace its network by an exact one, and return it with its scheduler's table."""
    prediction, betas, sampler = request.param
    folder = tmp_path_factory.mktemp("exact")
    save_pipeline(folder, sampler=sampler, prediction_type=prediction, beta_schedule=betas)
    denoiser = load_model(str(folder), dtype="float64")
    assert isinstance(denoiser, NetworkDenoiser)
    table = (1 - PIPELINES[sampler][1](beta_schedule=betas).betas.double()).cumprod(0)
    denoiser.network = exact_output(prediction, table)
    return denoiser, table


def levels_at(table: Tensor, times: list[int]) -> Tensor:
    chosen = table[times]
    return ((1 - chosen) / chosen).sqrt()


def test_an_exact_network_gives_the_gaussian_posterior(exact: tuple[NetworkDenoiser, Tensor]) -> None:
    denoiser, table = exact
    y, times = randn(5, 1, 8, 8), [0, 1, 37, 500, 900]
    levels = levels_at(table, times)
    level = levels[:, None, None, None]
    clean = MEAN + VARIANCE / (VARIANCE + level**2) * (y - MEAN)
    # v is a sum of two terms that cancel down to the noise where the level is low, so 1e-9 rather than 1e-12
    assert_close(denoiser(y, levels), clean, rtol=0, atol=1e-9)
    assert_close(denoiser.noise(y, levels), (y - clean) / level, rtol=0, atol=1e-9)
    for y_i, level_i, clean_i in zip(y, levels, clean, strict=True):
        assert_close(denoiser(y_i[None], level_i)[0], clean_i, rtol=0, atol=1e-9)


def test_call_and_noise_agree(exact: tuple[NetworkDenoiser, Tensor]) -> None:
    denoiser, table = exact
    y, levels = randn(4, 1, 8, 8), levels_at(table, [2, 50, 400, 999])
    level = levels[:, None, None, None]
    assert_close(denoiser(y, levels) + level * denoiser.noise(y, levels), y, rtol=1e-12, atol=1e-12)


def test_volume_growth_is_the_product_of_the_steps(exact: tuple[NetworkDenoiser, Tensor]) -> None:
    """ddim multiplies axis i by 1 + (s - t) t / (variance_i + t^2) from level t to level s."""
    denoiser, table = exact
    times = [5, 30, 120, 300, 620]
    levels = levels_at(table, times)
    steps = 1 + (levels.diff() * levels[:-1])[:, None] / (VARIANCE.flatten() + levels[:-1, None] ** 2)
    axes = [3, 17, 60]
    tangents = torch.eye(64, dtype=torch.float64)[axes].reshape(1, 3, 1, 8, 8).expand(2, 3, 1, 8, 8)
    growth = volume_growth(
        denoiser,
        randn(2, 1, 8, 8),
        schedule=denoiser.schedule,
        times=torch.tensor(times, dtype=torch.float64),
        solver="ddim",
        tangents=tangents,
        coordinates="y",
    )
    expected = steps[:, axes].log().sum(1).cumsum(0)
    assert_close(growth.log_volume, expected.expand(2, -1), rtol=0, atol=1e-8)
    assert not growth.above_ceiling.any()


def test_trace_growth_is_the_sum_over_axes(exact: tuple[NetworkDenoiser, Tensor]) -> None:
    denoiser, table = exact
    levels = levels_at(table, [3, 40, 150, 320])
    traces = trace_growth(denoiser, randn(2, 1, 8, 8), levels)
    rate = (levels[:, None] ** 2 / (VARIANCE.flatten() + levels[:, None] ** 2)).sum(1)
    assert_close(traces.rate, rate.expand(2, -1), rtol=1e-8, atol=0)
    assert_close(traces.log_volume, torch.trapezoid(rate, levels.log()).expand(2), rtol=1e-8, atol=0)


class Recording:
    """A network that remembers what it was given."""

    def __init__(self) -> None:
        self.x, self.labels = torch.empty(0), torch.empty(0)

    def __call__(self, x: Tensor, labels: Tensor) -> Tensor:
        self.x, self.labels = x, labels
        return x


@pytest.mark.parametrize("sampler", PIPELINES)
@pytest.mark.parametrize("betas", BETA_SCHEDULES)
def test_the_network_sees_what_the_scheduler_would_show_it(tmp_path: Path, betas: str, sampler: str) -> None:
    """x and labels against `add_noise`, whose tables are float32: sigma there is right to 4e-6."""
    save_pipeline(tmp_path, sampler=sampler, beta_schedule=betas)
    denoiser = load_model(str(tmp_path), dtype="float64")
    assert isinstance(denoiser, NetworkDenoiser)
    scheduler = PIPELINES[sampler][1](beta_schedule=betas)
    clean, noise = randn(1000, 1, 2, 2), randn(1000, 1, 2, 2, seed=1)
    times = torch.arange(1000)
    denoiser.network = seen = Recording()
    levels = denoiser.schedule.noise_level(times.double())
    denoiser.noise(clean + levels[:, None, None, None] * noise, levels)
    assert_close(seen.x, scheduler.add_noise(clean, noise, times), rtol=0, atol=2e-5)
    assert_close(seen.labels, times.double(), rtol=0, atol=1e-8)


def test_scheduler_tables_of_a_users_own(tmp_path: Path) -> None:
    betas = torch.linspace(1e-3, 0.2, 40).tolist()
    save_pipeline(tmp_path, trained_betas=betas, num_train_timesteps=40)
    schedule = load_model(str(tmp_path)).schedule
    assert isinstance(schedule, DDPMSchedule)
    assert len(schedule) == 40
    alpha, sigma = schedule(torch.arange(40, dtype=torch.float64))
    expected = (1 - torch.tensor(betas).double()).cumprod(0)
    assert_close(alpha**2, expected, rtol=1e-9, atol=0)
    assert_close(sigma**2, 1 - expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("sampler", PIPELINES)
def test_pure_noise_has_no_level(tmp_path: Path, sampler: str) -> None:
    """A table rescaled to zero terminal SNR ends in alpha = 0: the label before is the last one used."""
    save_pipeline(tmp_path, sampler=sampler, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    denoiser = load_model(str(tmp_path), dtype="float64")
    assert isinstance(denoiser, NetworkDenoiser)
    assert isinstance(denoiser.schedule, DDPMSchedule)
    assert len(denoiser.schedule) == 999
    betas = PIPELINES[sampler][1](rescale_betas_zero_snr=True).betas.double()
    table = (1 - betas).cumprod(0)
    assert table[-1] == 0
    denoiser.network = exact_output("v_prediction", table)
    y, levels = randn(2, 1, 8, 8), levels_at(table, [100, 998])
    level = levels[:, None, None, None]
    assert_close(denoiser.noise(y, levels), level / (VARIANCE + level**2) * (y - MEAN), rtol=0, atol=1e-8)


def recorded(labels_of: list[float], dtype: torch.dtype = torch.float64, **options: Any) -> Tensor:
    """Return the labels that a network with 1000 steps is given at these times."""
    schedule = DDPMSchedule((1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0))
    seen = Recording()
    denoiser = NetworkDenoiser(seen, Scheduled.on_table(schedule, "epsilon"), (1, 2, 2), **options)
    times = torch.tensor(labels_of, dtype=torch.float64)
    denoiser.noise(randn(len(times), 1, 2, 2).to(dtype), schedule.noise_level(times))
    return seen.labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_labels_lie_between_the_steps_and_stop_at_the_ends(dtype: torch.dtype) -> None:
    labels = recorded([-5.0, -0.25, 0.25, 3.5, 998.75, 999.5, 1200.0], dtype)
    assert labels.dtype == dtype
    assert_close(labels, torch.tensor([0, 0, 0.25, 3.5, 998.75, 999, 999], dtype=dtype), rtol=0, atol=1e-6)


def test_whole_labels_are_the_nearest_steps() -> None:
    labels = recorded([-5.0, 0.3, 0.7, 3.4, 41.0, 998.8, 1200.0], whole_labels=True)
    assert labels.dtype == torch.long
    assert labels.tolist() == [0, 0, 1, 3, 41, 999, 999]


def test_beyond_the_ends_x_keeps_its_own_scale() -> None:
    """Only the label is clamped: x is alpha y at the level asked for."""
    schedule = DDPMSchedule((1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0))
    seen, y = Recording(), randn(2, 1, 2, 2)
    levels = torch.tensor([1e-3, 1e4], dtype=torch.float64)
    NetworkDenoiser(seen, Scheduled.on_table(schedule, "epsilon"), (1, 2, 2)).noise(y, levels)
    assert_close(seen.x, y * (1 + levels**2).rsqrt()[:, None, None, None], rtol=1e-12, atol=0)
    assert seen.labels.tolist() == [0, 999]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_sampling_is_the_schedulers_own(tmp_path: Path, prediction: str) -> None:
    """A random network, ten DDIM steps: the adapter and `DDIMScheduler.step` end in the same image."""
    options = {"prediction_type": prediction, "clip_sample": False}
    network = save_pipeline(tmp_path, unet(in_channels=3, out_channels=3), "ddim", **options).double().eval()
    noise = randn(2, 3, 8, 8)
    scheduler = DDIMScheduler(**options)
    scheduler.set_timesteps(10)
    x = noise
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x, eta=0.0).prev_sample
    times = scheduler.timesteps.flip(0).double()
    drawn = ddim_sample(load_model(str(tmp_path), dtype="float64"), noise, times)
    assert_close(drawn, x, rtol=0, atol=2e-4 * x.abs().max().item())


def test_ddpm_and_ddim_folders_mean_the_same_denoiser(tmp_path: Path) -> None:
    y, level = randn(2, 1, 8, 8).float(), torch.tensor(0.3, dtype=torch.float64)
    outputs = []
    for sampler, scheduler in (("ddpm", DDPMScheduler), ("ddim", DDIMScheduler)):
        save_pipeline(tmp_path / sampler, sampler=sampler)
        assert (tmp_path / sampler / "scheduler" / "scheduler_config.json").read_text().count(scheduler.__name__) == 1
        outputs.append(load_model(str(tmp_path / sampler)).noise(y, level))
    assert outputs[0].equal(outputs[1])


def convolutions() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(4, 1, 3, padding=1)
    return torch.nn.Sequential(*layers).requires_grad_(False)


def small(network: Callable[..., Tensor]) -> NetworkDenoiser:
    return NetworkDenoiser(lambda x, labels: network(x) + x, Scheduled.on_table(DDPM, "epsilon"), (1, 8, 8))


def test_a_compiled_network_gives_the_same_growth_and_keeps_its_graph_for_several_probes() -> None:
    """With derivatives, and without them at another batch size."""
    denoiser = small(convolutions())
    faster = denoiser.compiled()
    given, expected = (
        trace_growth(each, randn(3, 1, 8, 8).float(), torch.tensor([0.2, 0.4]), 3, torch.Generator().manual_seed(0))
        for each in (faster, denoiser)
    )
    assert_close(given.rate, expected.rate, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        images, level = randn(2, 1, 8, 8).float(), torch.tensor(0.3)
        assert_close(faster.noise(images, level), denoiser.noise(images, level), rtol=1e-5, atol=1e-5)
    assert isinstance(faster.network, Compiled)
    assert faster.network.problem is None


@pytest.mark.parametrize("fault", ["no compiler", "no message", "other numbers", "other gradient", "no numbers"])
def test_where_compiling_fails_the_network_runs_as_it_is_and_it_is_said_once(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compiled(network: Callable[..., Tensor], dynamic: bool) -> Callable[..., Tensor]:
        def run(x: Tensor, labels: Tensor) -> Tensor:
            if fault == "no compiler":
                raise OSError("no such file: g++")
            if fault == "no message":
                raise AssertionError
            output = network(x, labels)
            if fault == "other gradient":
                return output.detach() + 0.9 * (output - output.detach())
            return output * (1.1 if fault == "other numbers" else torch.nan)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    denoiser = small(convolutions())
    faster, images = denoiser.compiled(), randn(2, 1, 8, 8).float()
    given, expected = (
        trace_growth(each, images, torch.tensor([0.2, 0.4]), 2, torch.Generator().manual_seed(0)).rate
        for each in (faster, denoiser)
    )
    assert torch.equal(given, expected)
    assert isinstance(faster.network, Compiled)
    problem = {"no compiler": "g++", "no message": "failed with AssertionError"}.get(fault, "other numbers")
    assert problem in str(faster.network.problem)
    assert len(caplog.records) == 1


def test_an_error_of_the_network_itself_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(x: Tensor) -> Tensor:
        raise ValueError("of its own")

    monkeypatch.setattr(torch, "compile", lambda network, dynamic: network)
    with pytest.raises(ValueError, match="of its own"):
        small(fails).compiled().noise(randn(2, 1, 8, 8).float(), torch.tensor(0.3))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")])
def test_a_compiled_network_without_memory_is_not_given_up(
    error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(network: Callable[..., Tensor], dynamic: bool) -> Callable[..., Tensor]:
        def run(x: Tensor, labels: Tensor) -> Tensor:
            raise error

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    faster = small(convolutions()).compiled()
    with pytest.raises(RuntimeError, match=str(error)):
        faster.noise(randn(2, 1, 8, 8).float(), torch.tensor(0.3))
    assert isinstance(faster.network, Compiled)
    assert faster.network.problem is None


def test_networks_of_convolutions_have_channels_last_on_gpus_and_the_same_growth_with_it(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, level = randn(3, 1, 8, 8).float(), torch.tensor([0.2, 0.4])
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    cases = ((UNet2D(), gpu), (UNet2D(), cpu), (DiT(), gpu))
    assert [model_folder.channels_last(*case) for case in cases] == [True, False, False]
    growth = []
    for last in (False, True):
        if last:
            monkeypatch.setattr(model_folder, "channels_last", lambda *_: True)
        denoiser = load_model(str(tiny_model))
        traced = trace_growth(denoiser, images, level, 2, torch.Generator().manual_seed(0))
        forward = volume_growth(
            denoiser,
            images,
            num_tangents=2,
            times=torch.linspace(0.1, 0.2, 3),
            generator=torch.Generator().manual_seed(0),
        )
        growth.append((traced.rate, forward.log_volume))
    for given, expected in zip(growth[1], growth[0], strict=True):
        assert_close(given, expected, rtol=1e-4, atol=1e-4)
