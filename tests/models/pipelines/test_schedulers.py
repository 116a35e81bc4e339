"""Every scheduler: exact networks through the conversion, and the steps of diffusers' own samplers."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.support.checkpoints import problem
from volgrowth.models import NetworkDenoiser
from volgrowth.models.pipelines.schedulers import EDM_SCHEDULERS, FLOW_SCHEDULERS, TABLES, SchedulerConfig
from volgrowth.numerics import trace_growth, volume_growth
from volgrowth.numerics.flow import decode

SHAPE = (1, 4, 4)
MEAN = torch.linspace(-0.5, 0.5, 16, dtype=torch.float64).reshape(SHAPE)
VARIANCE = torch.linspace(0, 0.8, 16, dtype=torch.float64).reshape(SHAPE)
AXES = [3, 7, 15]

# alpha, sigma and the network's label are worked out here from the scheduler's own tables, not by volgrowth's schedules
Exact = Callable[[Tensor, Tensor], Tensor]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """E[x_0 | x] and E[e | x] of x = alpha x_0 + sigma e with x_0 ~ N(MEAN, diag VARIANCE)."""
    alpha, sigma = (scale[:, None, None, None] for scale in (alpha, sigma))
    total = alpha**2 * VARIANCE + sigma**2
    residual = x - alpha * MEAN
    return MEAN + alpha * VARIANCE / total * residual, sigma / total * residual


def answers(prediction: str, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    clean, noise = gaussian(x, alpha, sigma)
    a, s = (scale[:, None, None, None] for scale in (alpha, sigma))
    return {
        "epsilon": noise,
        "v_prediction": a * noise - s * clean,
        "sample": clean,
        "flow_prediction": noise - clean,
        "score": -noise / s,
    }[prediction]


def on_table(prediction: str, scheduler: Any) -> Exact:
    table = (1 - scheduler.betas.double()).cumprod(0)

    def network(x: Tensor, labels: Tensor) -> Tensor:
        assert_close(labels, labels.round(), rtol=0, atol=1e-6)
        alpha = table[labels.round().long()].sqrt()
        return answers(prediction, x, alpha, (1 - alpha**2).sqrt())

    return network


def on_straight_paths(scheduler: Any) -> Exact:
    def network(x: Tensor, labels: Tensor) -> Tensor:
        share = labels / scheduler.config.num_train_timesteps
        return answers("flow_prediction", x, 1 - share, share)

    return network


def exploding(x: Tensor, labels: Tensor) -> Tensor:
    return answers("score", x, torch.ones_like(labels), labels)


def preconditioned(scheduler: Any, sigma_data: float, sign: int) -> Exact:
    """F of arXiv 2206.00364, eq. 7, solved for from the denoiser that is to come out."""

    def network(x: Tensor, labels: Tensor) -> Tensor:
        level = (4 * labels).exp()
        total = (level**2 + sigma_data**2)[:, None, None, None]
        y = x * total.sqrt()
        clean, _ = gaussian(y, torch.ones_like(level), level)
        out = sign * level[:, None, None, None] * sigma_data / total.sqrt()
        return (clean - sigma_data**2 / total * y) / out

    return network


def read(folder: Path, scheduler: Any) -> SchedulerConfig:
    scheduler.save_pretrained(folder)
    return SchedulerConfig(folder / "scheduler_config.json")


def check(config: SchedulerConfig, network: Exact, levels: Tensor) -> None:
    """Check that growth along noise levels is that of Gaussian data, by exact steps of ddim and by traces."""
    denoiser = NetworkDenoiser(network, config.parameterization, SHAPE)
    y = randn(2, *SHAPE)
    each = levels[:, None, None, None]
    clean = MEAN + VARIANCE / (VARIANCE + each**2) * (y[:1] - MEAN)
    assert_close(denoiser(y[:1].expand(len(levels), *SHAPE), levels), clean, rtol=0, atol=1e-7)
    tangents = torch.eye(16, dtype=torch.float64)[AXES].reshape(1, 3, *SHAPE).expand(2, 3, *SHAPE)
    assert denoiser.schedule is not None
    growth = volume_growth(
        denoiser,
        y * denoiser.schedule(denoiser.schedule.time(levels[:1]))[0],
        schedule=denoiser.schedule,
        times=denoiser.schedule.time(levels),
        solver="ddim",
        tangents=tangents,
        coordinates="y",
    )
    steps = 1 + (levels.diff() * levels[:-1])[:, None] / (VARIANCE.flatten() + levels[:-1, None] ** 2)
    assert_close(growth.log_volume, steps[:, AXES].log().sum(1).cumsum(0).expand(2, -1), rtol=0, atol=1e-6)
    traces = trace_growth(denoiser, y, levels)
    rate = (levels[:, None] ** 2 / (VARIANCE.flatten() + levels[:, None] ** 2)).sum(1)
    assert_close(traces.rate, rate.expand(2, -1), rtol=0, atol=1e-6)


def table_options(name: str) -> list[dict[str, Any]]:
    betas = ["linear", "scaled_linear", "squaredcos_cap_v2"]
    betas += ["exp"] if name == "HeunDiscreteScheduler" else []
    betas += ["sigmoid", "laplace"] if name == "DDPMScheduler" else []
    predictions = ["epsilon", "v_prediction", "sample"]
    options: list[dict[str, Any]] = [{"beta_schedule": b, "prediction_type": p} for b, p in product(betas, predictions)]
    kind = getattr(diffusers, name)
    if "rescale_betas_zero_snr" in kind().config:
        options += [{"rescale_betas_zero_snr": True, "prediction_type": p} for p in predictions]
    return options


TABLE_CASES = [(name, options) for name in TABLES for options in table_options(name)]


@pytest.mark.parametrize(
    ("name", "options"),
    TABLE_CASES,
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_tables(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    scheduler = getattr(diffusers, name)(**options)
    config = read(tmp_path, scheduler)
    table = (1 - scheduler.betas.double()).cumprod(0)
    times = [3, 40, 150, 320, 777]
    levels = ((1 - table[times]) / table[times]).sqrt()
    check(config, on_table(options["prediction_type"], scheduler), levels)


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_a_table_of_a_users_own(tmp_path: Path, name: str) -> None:
    scheduler = getattr(diffusers, name)(trained_betas=torch.linspace(1e-3, 0.2, 40).tolist(), num_train_timesteps=40)
    table = (1 - scheduler.betas.double()).cumprod(0)
    times = [0, 5, 20, 39]
    check(read(tmp_path, scheduler), on_table("epsilon", scheduler), ((1 - table[times]) / table[times]).sqrt())


FLOWS: list[tuple[str, dict[str, Any]]] = [
    ("FlowMatchEulerDiscreteScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}),
    ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
]
LEVELS = torch.tensor([0.02, 0.3, 1.0, 9.0], dtype=torch.float64)


@pytest.mark.parametrize(("name", "options"), FLOWS)
def test_straight_paths(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    scheduler = getattr(diffusers, name)(**options)
    check(read(tmp_path, scheduler), on_straight_paths(scheduler), LEVELS)


def test_exploding_variance(tmp_path: Path) -> None:
    config = read(tmp_path, diffusers.ScoreSdeVeScheduler())
    check(config, exploding, LEVELS)
    assert config.parameterization.noise_levels == (0.01, 1348.0)
    levels = config.sampling_levels(1)(50)
    assert_close(levels.log().diff(), (levels[1] / levels[0]).log().expand(49), rtol=1e-9, atol=0)


PRECONDITIONED: list[tuple[str, dict[str, Any], float, int]] = [
    *[(name, {}, 0.5, 1) for name in EDM_SCHEDULERS],
    *[(name, {"prediction_type": "v_prediction", "sigma_data": 1.0}, 1.0, -1) for name in EDM_SCHEDULERS],
    (
        "EulerDiscreteScheduler",
        {
            "timestep_type": "continuous",
            "prediction_type": "v_prediction",
            "sigma_min": 0.002,
            "sigma_max": 120.0,
            "use_karras_sigmas": True,
        },
        1.0,
        -1,
    ),
]


@pytest.mark.parametrize(("name", "options", "sigma_data", "sign"), PRECONDITIONED)
def test_preconditioned(tmp_path: Path, name: str, options: dict[str, Any], sigma_data: float, sign: int) -> None:
    scheduler = getattr(diffusers, name)(**options)
    config = read(tmp_path, scheduler)
    check(config, preconditioned(scheduler, sigma_data, sign), LEVELS)
    assert config.parameterization.noise_levels == (0.002, options.get("sigma_max", 80.0))


def random_network(x: Tensor, labels: Tensor) -> Tensor:
    """Return a smooth network that is unlike any Gaussian's."""
    label = labels.reshape(-1, 1, 1, 1).expand(len(x), 1, 1, 1).double()
    return torch.tanh(x.roll(1, 3) * 1.3 + 0.2 * torch.sin(label / 50)) + 0.1 * x


SAMPLERS: list[tuple[str, dict[str, Any]]] = [
    *[
        ("DDIMScheduler", {"timestep_spacing": spacing, "steps_offset": offset, "prediction_type": prediction})
        for spacing, offset, prediction in (
            ("leading", 1, "epsilon"),
            ("trailing", 0, "v_prediction"),
            ("leading", 0, "sample"),
        )
    ],
    *[
        ("EulerDiscreteScheduler", {"timestep_spacing": spacing, "prediction_type": "epsilon", "steps_offset": i})
        for spacing, i in (("leading", 1), ("linspace", 0))
    ],
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
    ("EDMEulerScheduler", {"final_sigmas_type": "zero"}),
]


@pytest.mark.parametrize(("name", "options"), SAMPLERS)
def test_samples_are_the_schedulers_own(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """All these samplers take steps of ddim: they and ours end in the same image.

    DDIM with `linspace` does not: it steps from each of these times by T / steps, not to the next of them.
    """
    if name == "DDIMScheduler":
        options = {**options, "clip_sample": False, "set_alpha_to_one": True}
    scheduler = getattr(diffusers, name)(**options)
    config, tokens, steps = read(tmp_path, scheduler), 1024, 8
    scheduler.set_timesteps(steps, **config._shift(tokens))
    noise = randn(3, *SHAPE)
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(random_network(seen, t.reshape(1)), t, x).prev_sample
    denoiser = NetworkDenoiser(
        random_network, config.parameterization, SHAPE, sampling_levels=config.sampling_levels(tokens)
    )
    levels = denoiser.sampling_levels(steps)
    assert len(levels) == steps
    drawn = decode(denoiser, noise * (1 + levels[-1] ** 2).sqrt(), levels)
    # our noise starts where the last noise level of a straight path still is one; between the entries of a table ours
    # interpolates the logarithm of the noise level, Euler the level
    loose = config.is_flow or options.get("timestep_spacing") == "linspace"
    assert_close(drawn, x.double(), rtol=0, atol=(2e-3 if loose else 5e-5) * x.abs().max().item())


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in (*TABLES, *EDM_SCHEDULERS)] + [(name, {"shift": 2.0}) for name in FLOW_SCHEDULERS],
)
def test_sampling_levels_lie_in_the_trained_range(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    config = read(tmp_path, getattr(diffusers, name)(**options))
    levels = config.sampling_levels(256)(20)
    low, high = config.parameterization.noise_levels
    assert (levels.diff() > 0).all()
    assert 15 <= len(levels) <= 21
    assert low <= levels[0]
    assert levels[-1] <= high
    assert levels[0] < 1 < levels[-1]


def test_what_a_scheduler_says_too_much_is_passed_over(tmp_path: Path) -> None:
    """Configurations carry settings of the scheduler they were made from: stable diffusion's PNDM has DDIM's."""
    config = read(tmp_path, diffusers.PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012))
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "clip_sample": False, "a_new_one": 3}))
    assert SchedulerConfig(path).parameterization.noise_levels == config.parameterization.noise_levels


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"_class_name": "TCDScheduler"}, "_class_name 'TCDScheduler': expected one of DDPMScheduler"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "has invert_sigmas: expected"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1},
            "num_train_timesteps 1: expected",
        ),
        (
            {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous", "prediction_type": "epsilon"},
            "prediction_type 'epsilon': expected one of v_prediction",
        ),
        (
            {"_class_name": "EDMEulerScheduler", "prediction_type": "sample"},
            "'sample': expected one of epsilon, v_pred",
        ),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "'epsilon': expected one of flow_pred"),
        ({"_class_name": "DDIMScheduler", "beta_start": 0.0}, "make no noise schedule"),
    ],
)
def test_refused(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(content))
    assert message in problem(SchedulerConfig, path)
    assert str(path) in problem(SchedulerConfig, path)
