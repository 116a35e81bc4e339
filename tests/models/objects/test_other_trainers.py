"""The oracle through the adapters: networks that are exact for Gaussian images, behind other libraries' own classes.

Each network answers in its library's convention, with alpha and sigma from the library's own schedule. The adapted
denoiser must then be the closed form, and answer as the library's own wrapper does.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

import volgrowth as vg
from tests.support.checkpoints import problem
from tests.support.other_libraries import library
from volgrowth.numerics import Denoiser

SHAPE = (1, 4, 4)
MEAN = torch.linspace(-0.5, 0.5, 16, dtype=torch.float64).reshape(SHAPE)
VARIANCE = torch.linspace(0.05, 0.8, 16, dtype=torch.float64).reshape(SHAPE)
LEVELS = (0.05, 0.3, 1.0, 7.0)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """E[x_0 | x] and E[e | x] of x = alpha x_0 + sigma e with x_0 ~ N(MEAN, diag VARIANCE)."""
    alpha, sigma = (torch.as_tensor(scale).to(x).reshape(-1, 1, 1, 1) for scale in (alpha, sigma))
    total = alpha**2 * VARIANCE.to(x) + sigma**2
    residual = x - alpha * MEAN.to(x)
    return MEAN.to(x) + alpha * VARIANCE.to(x) / total * residual, sigma / total * residual


class Exact(torch.nn.Module):
    """A network that answers by a function; it has one weight, which changes nothing, so that it has a precision."""

    def __init__(self, answer: Callable[..., Tensor], **attributes: Any):
        super().__init__()
        self.answer, self.weight = answer, torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, *given: Any, **more: Any) -> Tensor:
        return self.answer(*given, **more) + self.weight


def check_exact(denoiser: Denoiser, levels: tuple[float, ...] = LEVELS, tolerance: float = 1e-9) -> None:
    """Compare with the closed form, for one level at a time and for one for each image; then sampling levels."""
    y = 2 * randn(len(levels), *SHAPE)
    clean, noise = moments(y, torch.ones(len(levels)), torch.tensor(levels, dtype=torch.float64))
    together = torch.tensor(levels, dtype=torch.float64)
    assert_close(denoiser(y, together), clean, rtol=tolerance, atol=tolerance)
    assert_close(denoiser.noise(y, together), noise, rtol=tolerance, atol=tolerance)
    for index, level in enumerate(together):
        given = y[index : index + 1]
        assert_close(denoiser(given, level), clean[index : index + 1], rtol=tolerance, atol=tolerance)
    assert denoiser.image_shape == SHAPE
    assert denoiser.dtype is torch.float64
    found = denoiser.sampling_levels(5)
    assert (found.diff() > 0).all()


def predicted(kind: str, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    clean, noise = moments(x, alpha, sigma)
    a, s = (scale.to(x).reshape(-1, 1, 1, 1) for scale in (alpha, sigma))
    return {"noise": noise, "x0": clean, "v": a * noise - s * clean}[kind]


# --- lucidrains


def gaussian_diffusion(objective: str = "pred_noise", schedule: str = "linear", **options: Any) -> Any:
    lucidrains = library("denoising_diffusion_pytorch")
    table: list[Tensor] = []

    def answer(x: Tensor, t: Tensor, self_cond: Any = None) -> Tensor:
        squared = table[0][t.round().long()]
        return predicted(objective.removeprefix("pred_"), x, squared.sqrt(), (1 - squared).sqrt())

    network = Exact(answer, channels=1, out_dim=1, self_condition=False)
    diffusion = lucidrains.GaussianDiffusion(
        network, image_size=4, timesteps=200, objective=objective, beta_schedule=schedule, **options
    )
    table.append(diffusion.alphas_cumprod.double())
    return diffusion.double()


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
def test_gaussian_diffusion(objective, schedule):
    diffusion = gaussian_diffusion(objective, schedule)
    denoiser = vg.adapt(diffusion)
    steps = torch.tensor([0, 20, 90, 170])
    table = diffusion.alphas_cumprod
    levels = ((1 - table) / table).sqrt()[steps]
    check_exact(denoiser, tuple(levels.tolist()))
    y = randn(4, *SHAPE, seed=3)
    own = diffusion.model_predictions(table[steps].sqrt().reshape(-1, 1, 1, 1) * y, steps)
    assert_close(denoiser(y, levels), own.pred_x_start, rtol=1e-5, atol=1e-5)  # its tables are float32
    assert_close(denoiser.noise(y, levels), own.pred_noise, rtol=1e-4, atol=1e-4)


def test_gaussian_diffusion_of_a_range_that_it_does_not_say():
    diffusion = gaussian_diffusion(auto_normalize=False)
    assert "auto_normalize=False" in problem(lambda: vg.adapt(diffusion))
    assert "expected (-1, 1) or (0, 1)" in problem(lambda: vg.adapt(diffusion, value_range=(0, 255)))
    signed, unit = (vg.adapt(diffusion, value_range=limits) for limits in ((-1, 1), (0, 1)))
    y, level = randn(2, *SHAPE), torch.tensor(0.8, dtype=torch.float64)
    assert_close(unit(y, level), 2 * signed((y + 1) / 2, level / 2) - 1)


def test_elucidated_diffusion():
    lucidrains = library("denoising_diffusion_pytorch")

    def answer(x: Tensor, label: Tensor, self_cond: Any = None) -> Tensor:
        sigma = (4 * label).exp().reshape(-1, 1, 1, 1)
        total = sigma**2 + 0.25
        y = x * total.sqrt()
        return (moments(y, torch.ones(len(x)), sigma)[0] - 0.25 / total * y) * total.sqrt() / (sigma * 0.5)

    network = Exact(answer, random_or_learned_sinusoidal_cond=True, self_condition=False)
    diffusion = lucidrains.ElucidatedDiffusion(network, image_size=4, channels=1)
    denoiser = vg.adapt(diffusion)
    check_exact(denoiser)
    y = randn(4, *SHAPE)
    own = diffusion.preconditioned_network_forward(y, torch.tensor(LEVELS, dtype=torch.float64))
    assert_close(denoiser(y, torch.tensor(LEVELS, dtype=torch.float64)), own)


def test_relatives_that_predict_more_are_refused():
    lucidrains = library("denoising_diffusion_pytorch")
    network = Exact(lambda x, t, c=None: x, channels=1, out_dim=2, self_condition=False)
    learned = lucidrains.LearnedGaussianDiffusion(network, image_size=4)
    assert "LearnedGaussianDiffusion predicts more than an image" in problem(lambda: vg.adapt(learned))


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    """lucidrains' Trainer around a small network of theirs, whose average is another network than the plain one."""
    lucidrains = library("denoising_diffusion_pytorch")
    (tmp_path / "images").mkdir()
    for index in range(100):
        Image.new("L", (8, 8), index).save(tmp_path / f"images/{index}.png")
    torch.manual_seed(0)
    network = lucidrains.Unet(dim=8, channels=1, dim_mults=(1, 2), attn_heads=1, attn_dim_head=4)
    diffusion = lucidrains.GaussianDiffusion(network, image_size=8, timesteps=50)
    made = lucidrains.Trainer(
        diffusion, str(tmp_path / "images"), calculate_fid=False, results_folder=str(tmp_path / "results"),
        augment_horizontal_flip=False,
    )  # fmt: skip
    with torch.no_grad():
        for weight in made.ema.ema_model.parameters():
            weight.mul_(0.9)
    return made


def test_a_trainer_and_its_checkpoints_give_the_moving_average_first(trainer, tmp_path):
    y, level = randn(2, 1, 8, 8).float(), torch.tensor(0.5)
    average, plain = vg.adapt(trainer), vg.adapt(trainer.model)
    assert not torch.allclose(average(y, level), plain(y, level))
    trainer.save(3)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    saved = vg.adapt(trainer.model, checkpoint=tmp_path / "results/model-3.pt")
    assert_close(saved(y, level), average(y, level), rtol=0, atol=0)
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.state_dict().items())
    content = torch.load(tmp_path / "results/model-3.pt", weights_only=True)
    torch.save({"model": content["model"]}, tmp_path / "plain.pt")
    without = vg.adapt(trainer.model, checkpoint=tmp_path / "plain.pt")
    assert_close(without(y, level), plain(y, level), rtol=0, atol=0)


def test_checkpoints_that_are_none_are_refused_in_a_sentence(trainer, tmp_path):
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 cut")
    torch.save({"weights": {}}, tmp_path / "other.pt")
    torch.save({"model": {"betas": torch.zeros(2)}}, tmp_path / "wrong.pt")
    torch.save({"model": Path}, tmp_path / "code.pt")
    for name, sentence in (
        ("cut.pt", "cannot be read"),
        ("none.pt", "cannot be read"),
        ("code.pt", "cannot be read"),
        ("other.pt", "has neither ema nor model"),
        ("wrong.pt", "holds the weights of another network"),
    ):
        said = problem(lambda n=name: vg.adapt(trainer.model, checkpoint=tmp_path / n))
        assert sentence in said
        assert "\n" not in said
    linear = torch.nn.Linear(1, 1)
    assert "a checkpoint was given for a Linear" in problem(lambda: vg.adapt(linear, checkpoint="x.pt"))


# --- azula


@pytest.mark.parametrize("kind", ["VPSchedule", "VESchedule", "CosineSchedule", "RectifiedSchedule", "DecaySchedule"])
def test_azula(kind):
    library("azula")
    from azula import denoise, noise
    from azula.linalg.covariance import DiagonalCovariance

    schedule = getattr(noise, kind)()

    def simple(x: Tensor, label: Tensor) -> Tensor:
        level = label.exp()
        return moments(x * (1 + level**2).sqrt().reshape(-1, 1, 1, 1), torch.ones(len(x)), level)[0]

    def karras(x: Tensor, label: Tensor) -> Tensor:
        level = label.exp().reshape(-1, 1, 1, 1)
        y = x * (1 + level**2).sqrt()
        return (moments(y, torch.ones(len(x)), level)[0] - y / (1 + level**2)) * (1 + level**2).sqrt() / level

    gaussian = denoise.GaussianDenoiser(MEAN, DiagonalCovariance(VARIANCE), schedule)
    for theirs in (
        gaussian,
        denoise.SimpleDenoiser(Exact(simple), schedule),
        denoise.KarrasDenoiser(Exact(karras), schedule),
    ):
        denoiser = vg.adapt(theirs, image_shape=SHAPE)
        if theirs is gaussian:  # it holds no weights that would tell its precision
            denoiser.dtype = denoiser.precision = torch.float64
        check_exact(denoiser, tolerance=1e-6)
        times = torch.tensor([0.2, 0.6], dtype=torch.float64)
        for time in times:
            alpha, sigma = schedule(time)
            y = randn(2, *SHAPE)
            assert_close(denoiser(y, sigma / alpha), theirs(alpha * y, time).mean, rtol=1e-6, atol=1e-6)
    assert "does not say the shape of its images" in problem(lambda: vg.adapt(gaussian))


# --- k-diffusion


def preconditioned(sign: int, data: float) -> Callable[[Tensor, Tensor], Tensor]:
    """F of EDM's preconditioning, solved for from the denoiser that is to come out."""

    def answer(x: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma.reshape(-1, 1, 1, 1)
        total = sigma**2 + data**2
        y = x * total.sqrt()
        clean = moments(y, torch.ones(len(x)), sigma)[0]
        return sign * (clean - data**2 / total * y) * total.sqrt() / (sigma * data)

    return answer


def k_diffusion_wrappers() -> dict[str, Any]:
    external, layers = library("k_diffusion").external, library("k_diffusion").layers
    table = torch.linspace(0.9995, 0.01, 100, dtype=torch.float64)
    whole = preconditioned(1, 0.5)

    def on_table(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
        def answer(x: Tensor, t: Tensor) -> Tensor:
            low = t.floor().long().clamp(0, 98)
            logs = ((1 - table) / table).log() / 2
            level = (logs[low] + (t - low) * (logs[low + 1] - logs[low])).exp()
            alpha = (1 + level**2).rsqrt()
            return predicted(kind, x, alpha, level * alpha)

        return answer

    def with_variance(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([on_table("noise")(x, t), torch.full_like(x, 9.0)], 1)

    class Diffusion:
        alphas_cumprod = table.numpy()

    return {
        "Denoiser": layers.Denoiser(Exact(whole), sigma_data=0.5),
        "VDenoiser": external.VDenoiser(Exact(lambda x, t: preconditioned(-1, 1.0)(x, (t * math.pi / 2).tan()))),
        "DiscreteEpsDDPMDenoiser": external.DiscreteEpsDDPMDenoiser(Exact(on_table("noise")), table, False),
        "DiscreteVDDPMDenoiser": external.DiscreteVDDPMDenoiser(Exact(on_table("v")), table, False),
        "OpenAIDenoiser": external.OpenAIDenoiser(Exact(with_variance), Diffusion).double(),
    }


@pytest.mark.parametrize(
    "name", ["Denoiser", "VDenoiser", "DiscreteEpsDDPMDenoiser", "DiscreteVDDPMDenoiser", "OpenAIDenoiser"]
)
def test_k_diffusion(name):
    wrapper = k_diffusion_wrappers()[name]
    denoiser = vg.adapt(wrapper, image_shape=SHAPE)
    tolerance = 1e-5 if name == "OpenAIDenoiser" else 1e-9  # it keeps its table in float32
    check_exact(denoiser, tolerance=tolerance)
    y, levels = randn(4, *SHAPE), torch.tensor(LEVELS, dtype=torch.float64)
    assert_close(denoiser(y, levels), wrapper(y, levels), rtol=1e-5, atol=1e-5)


def test_a_quantized_table_gets_whole_steps():
    external = library("k_diffusion").external
    seen: list[Tensor] = []

    def answer(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return x

    wrapper = external.DiscreteEpsDDPMDenoiser(Exact(answer), torch.linspace(0.99, 0.1, 10).double(), True)
    vg.adapt(wrapper, image_shape=SHAPE)(randn(1, *SHAPE), torch.tensor(0.5, dtype=torch.float64))
    assert seen[0].dtype is torch.long


# --- EDM2, whose code is no package: its Precond, by its signature


class Precond(torch.nn.Module):
    def __init__(self, unet: torch.nn.Module, label_dim: int = 0, channels: int = 1):
        super().__init__()
        self.img_resolution, self.img_channels, self.label_dim, self.sigma_data = 4, channels, label_dim, 0.5
        self.unet = unet

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        sigma = sigma.reshape(-1, 1, 1, 1)
        total = sigma**2 + self.sigma_data**2
        labels = None if self.label_dim == 0 else class_labels
        output = self.unet(x / total.sqrt(), sigma.flatten().log() / 4, labels)
        return self.sigma_data**2 / total * x + sigma * self.sigma_data / total.sqrt() * output


def test_edm2():
    def answer(x: Tensor, label: Tensor, classes: Tensor | None) -> Tensor:
        shift = 0.0 if classes is None else classes @ torch.arange(3, dtype=x.dtype)
        return preconditioned(1, 0.5)(x, (4 * label).exp()) + torch.as_tensor(shift).reshape(-1, 1, 1, 1)

    model = Precond(Exact(answer))
    denoiser = vg.adapt(model)
    check_exact(denoiser)
    y, levels = randn(4, *SHAPE), torch.tensor(LEVELS, dtype=torch.float64)
    assert_close(denoiser(y, levels), model(y, levels))
    classes = Precond(Exact(answer), label_dim=3)
    by_class = vg.adapt(classes)
    assert (by_class.condition, by_class.has_null) == ("class", False)
    hot = torch.nn.functional.one_hot(torch.tensor([0, 2, 1, 2]), 3).double()
    assert_close(by_class.given([0, 2, 1, 2])(y, levels), classes(y, levels, hot))
    assert "4 channels, which are latents" in problem(lambda: vg.adapt(Precond(Exact(answer), channels=4)))


# --- flow matching


def flow(to_data: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """The velocity of the path, by its own time: x_0 - e towards data, e - x_0 towards noise."""

    def answer(t: Tensor, x: Tensor) -> Tensor:
        share = 1 - t if to_data else t
        clean, noise = moments(x, 1 - share, share)
        return clean - noise if to_data else noise - clean

    return answer


class OfTorchcfm(Exact):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.answer(t, x) + self.weight


class OfDiffusers(Exact):
    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return self.answer(timestep / 1000, sample) + self.weight


def test_velocities_by_the_direction_of_their_time():
    check_exact(vg.velocity(OfTorchcfm(flow(True)), time="noise_to_data", image_shape=SHAPE))
    check_exact(vg.velocity(OfTorchcfm(flow(False)), time="data_to_noise", image_shape=SHAPE))
    there = OfDiffusers(flow(False))
    check_exact(vg.velocity(there, time="data_to_noise", image_shape=SHAPE, time_scale=1000))
    check_exact(vg.velocity(Exact(flow(True)), time="noise_to_data", image_shape=SHAPE, arguments="t, x"))


def test_the_velocity_is_the_one_that_torchcfm_trains():
    """Its matcher's own targets, regressed on: what the exact network leaves is orthogonal to what it sees."""
    matcher = library("torchcfm").ConditionalFlowMatcher(sigma=0.0)
    images = MEAN + VARIANCE.sqrt() * randn(20_000, *SHAPE, seed=1)
    torch.manual_seed(0)
    noise = torch.randn_like(images)
    t, x, target = matcher.sample_location_and_conditional_flow(noise, images)
    rest = target - flow(True)(t, x)
    assert abs(float((rest * x).mean())) < 0.01
    assert abs(float(((target + flow(True)(t, x)) * x).mean())) > 0.1  # of the other sign it is not


def test_torchcfms_own_network():
    library("torchcfm")
    from torchcfm.models.unet import UNetModel

    torch.manual_seed(0)
    network = UNetModel(dim=(1, 8, 8), num_channels=32, num_res_blocks=1, channel_mult=(1,))
    denoiser = vg.velocity(network, time="noise_to_data", image_shape=(1, 8, 8))
    y, level = randn(2, 1, 8, 8).float(), torch.tensor(0.5)
    share = level / (1 + level)
    velocity = network((1 - share).expand(2), (1 - share) * y)
    x = (1 - share) * y
    assert_close(denoiser(y, level), x + share * velocity)  # x_0 = x_t + (1 - t) F
    assert denoiser.kind == type(network).__name__


def test_a_velocity_that_does_not_say_enough_is_refused():
    def said(network: torch.nn.Module, **given: Any) -> str:
        return problem(lambda: vg.velocity(network, **{"time": "noise_to_data", "image_shape": SHAPE, **given}))

    network = OfTorchcfm(flow(True))
    assert "time 'forward': expected 'noise_to_data'" in said(network, time="forward")
    assert "do not tell which is the time" in said(Exact(flow(True)))
    assert "arguments 'x': expected" in said(network, arguments="x")


def test_wrappers_of_torch_are_looked_into():
    inner = gaussian_diffusion()
    for holder in (torch.nn.DataParallel(inner), torch.optim.swa_utils.AveragedModel(inner)):
        assert vg.adapt(holder).image_shape == SHAPE
