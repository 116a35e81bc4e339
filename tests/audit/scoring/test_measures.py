import traceback

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import volgrowth as vg
from volgrowth.audit.scoring.cascade import SHARED
from volgrowth.audit.scoring.derivatives import by_torch
from volgrowth.audit.scoring.measures import (
    Flow,
    common_noise,
    launch_images,
    measure_images,
)
from volgrowth.audit.workers.seeding import seeded
from volgrowth.config import SCREEN_EVALUATIONS, PaperMeasure, ScreenMeasure, StandardMeasure, VolumeMeasure
from volgrowth.models import load_model
from volgrowth.numerics.denoisers import GuidedDenoiser


class Counting(vg.Denoiser):
    """Counts the images whose noise it is asked for, and the backward passes through them."""

    def __init__(self, inner):
        self.inner, self.forwards, self.backwards = inner, 0, 0

    def noise(self, y, noise_level):
        self.forwards += len(y)
        noise = self.inner.noise(y, noise_level)
        if noise.requires_grad:
            noise.register_hook(self._count)
        return noise

    def _count(self, gradient):
        self.backwards += len(gradient)


@pytest.mark.parametrize("measure", [ScreenMeasure(), StandardMeasure(), PaperMeasure(), VolumeMeasure(num_levels=3)])
@pytest.mark.parametrize("null", [False, True], ids=["", "null"])
@pytest.mark.parametrize("screened", [False, True], ids=["", "screened"])
def test_evaluations_are_what_is_spent(measure, null, screened):
    denoiser = Counting(vg.GaussianDenoiser(0.0, 0.3))
    flow = Flow(denoiser, denoiser if null else None, guidance=2.0)
    measured = launch_images(flow, torch.randn(5, 1, 4, 4), list(range(5)), measure, 0, screened).fetch()
    if screened and not isinstance(measure, ScreenMeasure):
        expected = measure.evaluations_after_screen
    else:
        expected = measure.evaluations
    expected += (measure.unconditional_evaluations + measure.guided_evaluations) if null else 0
    assert measured.nfe == expected
    assert denoiser.forwards + denoiser.backwards == 5 * measured.nfe


def test_the_standard_preset_is_the_screen_and_one_forward_pass_more():
    assert ScreenMeasure().evaluations == SCREEN_EVALUATIONS == 3
    assert StandardMeasure().evaluations == 4
    assert not by_torch(StandardMeasure())


def gaussian_closed_forms(images, mean, variance, start, end, seed):
    """Return the closed forms of the forward passes for data N(mean, variance), variance (*image)."""
    e = common_noise(images, seed)
    share = start**2 / (variance + start**2)
    at_image = (share / start * (images - mean)).flatten(1).norm(dim=1)
    axis = e / e.norm()
    growth = (axis * (1 + (end - start) * share / start)).norm().log()
    share = end**2 / (variance + end**2)
    even = share / end * (images - mean)
    loss = (((share - 1) * e) ** 2 + even**2).flatten(1).mean(1)
    rate = (share * e**2).sum() / e.square().mean()
    of_all = {"growth": growth.expand(len(images)), "screen": rate.expand(len(images))}
    return {**of_all, "noise_norm": at_image, "loss": loss}


@pytest.mark.parametrize("seed", range(5))
def test_forward_passes_have_their_closed_forms_on_gaussian_data(seed):
    generator = torch.Generator().manual_seed(seed)
    variance, mean = torch.rand(2, 1, 4, 4, generator=generator, dtype=torch.float64)
    images = torch.randn(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    flow = Flow(vg.GaussianDenoiser(mean, variance))
    exact = gaussian_closed_forms(images, mean, variance, 0.1, 0.3, seed)
    standard = measure_images(flow, images, [0, 1, 2], StandardMeasure(), seed).columns
    for name, column in exact.items():
        np.testing.assert_allclose(standard[name], column, rtol=1e-9, err_msg=name)
    screen = measure_images(flow, images, [0, 1, 2], ScreenMeasure(), seed).columns
    np.testing.assert_array_equal(screen["growth"], standard["screen"])
    np.testing.assert_array_equal(screen["rates"][:, 0], standard["screen"])
    for name in SHARED:
        np.testing.assert_array_equal(screen[name], standard[name], err_msg=name)


def test_a_rate_is_the_trace_rate_on_average_over_draws():
    """For the Gaussian the rate is the same everywhere, so that the mean over noises is the exact trace."""
    variance = torch.rand(1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images, flow = torch.zeros(1, 1, 4, 4, dtype=torch.float64), Flow(vg.GaussianDenoiser(0.0, variance))
    rates = [measure_images(flow, images, [0], ScreenMeasure(), seed).columns["growth"][0] for seed in range(400)]
    exact = (0.3**2 / (variance + 0.3**2)).sum().item()
    assert np.mean(rates) == pytest.approx(exact, abs=4 * np.std(rates) / 20)


def test_standard_growth_is_a_step_of_volume_growth_along_the_common_axis():
    """On an empirical denoiser, whose derivative varies: the same difference, taken by `vg.volume_growth`."""
    generator = torch.Generator().manual_seed(1)
    denoiser = vg.EmpiricalDenoiser(torch.randn(6, 1, 4, 4, generator=generator, dtype=torch.float64))
    images = denoiser.points[:3] + 0.2 * torch.randn(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    for seed in range(5):
        e = common_noise(images, seed)
        direct = vg.volume_growth(
            denoiser,
            images,
            schedule=vg.VESchedule(),
            times=torch.tensor([0.1, 0.3], dtype=torch.float64),
            derivative="difference",
            radius=0.1 * e.norm().item(),
            tangents=e.expand_as(images)[:, None],
            coordinates="y",
        )
        found = measure_images(Flow(denoiser), images, [0, 1, 2], StandardMeasure(), seed)
        np.testing.assert_allclose(found.columns["growth"], direct.log_volume[:, 0], rtol=1e-9)
        np.testing.assert_allclose(
            found.columns["noise_norm"], ((direct.endpoint - images) / 0.2).flatten(1).norm(dim=1), rtol=1e-9
        )
        assert found.above_ceiling.tolist() == direct.above_ceiling.tolist()


def test_a_point_mass_has_every_direction_collapsed_and_no_loss():
    point = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    point[1] += 0.3
    found = measure_images(Flow(vg.GaussianDenoiser(0.0, 0.0)), point, [0, 1], StandardMeasure(), seed=0)
    assert found.columns["screen"].tolist() == pytest.approx([16, 16])
    assert found.columns["growth"].tolist() == pytest.approx([np.log(3)] * 2)
    assert found.columns["loss"].tolist() == pytest.approx([0.0, 1.0], abs=1e-12)
    assert found.columns["noise_norm"].tolist() == pytest.approx([0.0, 12.0], abs=1e-12)
    assert not found.above_ceiling.any()


def test_guided_growth_is_that_of_the_guided_noise():
    generator = torch.Generator().manual_seed(2)
    points = torch.randn(2, 5, 1, 4, 4, generator=generator, dtype=torch.float64)
    given, null = vg.EmpiricalDenoiser(points[0]), vg.EmpiricalDenoiser(points.flatten(0, 1))
    images = points[0, :3]
    for measure in (StandardMeasure(), ScreenMeasure()):
        found = measure_images(Flow(given, null, guidance=3.0), images, [0, 1, 2], measure, seed=0).columns
        for name, denoiser in (
            ("growth_unconditional", null),
            ("growth_guided", GuidedDenoiser(given, null, 3.0)),
        ):
            alone = measure_images(Flow(denoiser), images, [0, 1, 2], measure, seed=0).columns["growth"]
            np.testing.assert_allclose(found[name], alone, rtol=1e-9, err_msg=name)
        np.testing.assert_allclose(found["growth_contrast"], found["growth"] - found["growth_unconditional"])


@pytest.mark.parametrize("measure", [StandardMeasure(), VolumeMeasure(num_levels=3)])
def test_what_the_screen_measured_is_not_measured_again(tiny_model, measure):
    """And what both measure together is the same to the bit."""
    flow, images = Flow(load_model(str(tiny_model))), torch.randn(4, 1, 8, 8)
    whole = launch_images(flow, images, [0, 1, 2, 3], measure, 0).fetch().columns
    rest = launch_images(flow, images, [0, 1, 2, 3], measure, 0, screened=True).fetch().columns
    screen = launch_images(flow, images, [0, 1, 2, 3], ScreenMeasure(), 0).fetch().columns
    assert set(rest) == set(whole) - set(SHARED)
    for name, column in whole.items():
        np.testing.assert_array_equal((screen if name in SHARED else rest)[name], column, err_msg=name)


def test_paper_growth_is_volume_growth_with_the_row_s_own_axis(tiny_model):
    denoiser = load_model(str(tiny_model))
    images = torch.randn(3, 1, 8, 8)
    measured = measure_images(Flow(denoiser), images, [4, 9, 2], PaperMeasure(num_steps=3), seed=5)
    tangents = torch.stack([torch.randn((1, 1, 8, 8), generator=seeded(5, "tangent", row)) for row in (4, 9, 2)])
    times = torch.tensor([1e-3, 2e-3, 3e-3, 4e-3], dtype=torch.float64)
    with torch.no_grad():
        direct = vg.volume_growth(denoiser, images, times=times, derivative="difference", tangents=tangents)
    np.testing.assert_array_equal(measured.columns["growth"], direct.log_volume[:, -1].double().numpy())
    np.testing.assert_allclose(measured.columns["rates"].sum(1), measured.columns["growth"])


@pytest.mark.parametrize("measure", [ScreenMeasure(), StandardMeasure(), PaperMeasure(), VolumeMeasure()])
def test_a_score_depends_on_its_row_and_not_on_its_company(tiny_model, measure):
    denoiser = load_model(str(tiny_model), dtype="float64")
    images = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    whole = measure_images(Flow(denoiser), images, [10, 11, 12, 13], measure, seed=1)
    part = measure_images(Flow(denoiser), images[[3, 1]], [13, 11], measure, seed=1)
    for name, column in whole.columns.items():
        np.testing.assert_allclose(part.columns[name], column[[3, 1]], rtol=1e-9, atol=1e-12, err_msg=name)


class Copies(TorchDispatchMode):
    """Collects copies to the device, and those of them that the host waits for."""

    def __init__(self):
        super().__init__()
        self.all, self.blocking = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            device = torch.device(kwargs.get("device") or args[0].device)
            if device != args[0].device:
                self.all.append("".join(traceback.format_stack(limit=12)))
                if not kwargs.get("non_blocking"):
                    self.blocking.append(self.all[-1])
        return func(*args, **kwargs)


@pytest.mark.parametrize(
    "measure",
    [
        ScreenMeasure(),
        StandardMeasure(),
        VolumeMeasure(num_levels=3),
        PaperMeasure(num_steps=2),
        PaperMeasure(derivative="jvp"),
    ],
    ids=["screen", "standard", "volume", "difference", "jvp"],
)
def test_no_step_waits_for_the_device(tiny_model, measure):
    """Tensors on the meta device have no numbers: whatever asks for one, as a host that waits does, fails."""
    denoiser = load_model(str(tiny_model), device="meta")
    images = torch.randn(3, 1, 8, 8, device="meta")
    with pytest.raises(Exception, match="meta"):
        images.sum().item()
    with Copies() as copies:
        launched = launch_images(Flow(denoiser), images, [0, 1, 2], measure, seed=0)
    assert all(column.is_meta for column in launched.columns.values())
    assert not copies.blocking


@pytest.mark.parametrize(
    "measure", [ScreenMeasure(), StandardMeasure(), PaperMeasure(num_steps=2), PaperMeasure(derivative="jvp")], ids=str
)
def test_a_launch_that_is_recorded_reads_nothing_from_the_host(tiny_model, measure):
    """A CUDA graph can record no copy from memory that is not pinned, and must record none that changes."""
    denoiser = load_model(str(tiny_model), device="meta")
    images, axes = torch.randn(3, 1, 8, 8, device="meta"), torch.randn(3, 1, 1, 8, 8, device="meta")
    launch_images(Flow(denoiser), images, [0, 1, 2], measure, seed=0, axes=axes)  # constants are put there once
    with Copies() as copies:
        launch_images(Flow(denoiser), images, [0, 1, 2], measure, seed=0, axes=axes)
    assert not copies.all


def test_results_come_in_one_copy(tiny_model, monkeypatch):
    denoiser, calls = load_model(str(tiny_model)), []
    launched = launch_images(Flow(denoiser), torch.randn(3, 1, 8, 8), [0, 1, 2], StandardMeasure(), seed=0)

    def to(tensor, device, copy):
        calls.append(1)
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", to)
    sent = launched.sent()
    assert len(calls) == 1
    measured = sent.fetch()
    assert len(calls) == 1  # the copy was on its way before anything was asked for
    for name, column in launched.columns.items():
        np.testing.assert_array_equal(measured.columns[name], column.double().numpy(), err_msg=name)
    assert measured.above_ceiling.dtype == measured.sign_flip.dtype == bool


def test_rows_with_any_number_that_is_not_finite_are_seen():
    class Broken(vg.Denoiser):
        def noise(self, y, noise_level):
            return y / torch.where(y.flatten(1).sum(1) > 0, 1.0, 0.0).reshape(-1, 1, 1, 1)

    images = torch.ones(3, 1, 4, 4)
    images[1] *= -1
    measured = measure_images(Flow(Broken()), images, [0, 1, 2], StandardMeasure(), seed=0)
    assert measured.finite.tolist() == [True, False, True]


def test_volume_growth_and_likelihood_on_gaussian_data():
    """Against 1/2 sum log of the variances' ratio and the density, to the error of 201 nodes."""
    torch.manual_seed(0)
    denoiser = vg.GaussianDenoiser(0.0, torch.rand(1, 4, 4, dtype=torch.float64) + 0.1)
    images = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    measure = VolumeMeasure(num_levels=201)
    measured = measure_images(Flow(denoiser), images, [0, 1, 2], measure, seed=0)
    low, high = (denoiser.variance + level**2 for level in (measure.smallest_level, measure.largest_level))
    np.testing.assert_allclose(measured.columns["growth"], 0.5 * (high / low).log().sum().item(), atol=0.02)
    exact = denoiser.log_prob(images, torch.tensor(measure.smallest_level, dtype=torch.float64))
    np.testing.assert_allclose(measured.columns["log_likelihood"], exact.numpy(), atol=0.02)


@pytest.mark.parametrize("measure", [StandardMeasure(norm_level=1e-6), VolumeMeasure(largest_level=1000)])
def test_a_model_is_not_asked_beyond_the_noise_it_was_trained_on(measure):
    class Levels(vg.GaussianDenoiser):
        schedule = vg.DDPMSchedule((1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0))

        def noise(self, y, noise_level):
            asked.append(noise_level.item())
            return super().noise(y, noise_level)

    asked: list[float] = []
    measure_images(Flow(Levels(0.0, 0.5)), torch.randn(2, 1, 4, 4), [0, 1], measure, seed=0)
    lowest, highest = Levels.schedule.log_noise_levels[[0, -1]].exp().tolist()
    assert lowest * (1 - 1e-9) <= min(asked)
    assert max(asked) <= highest * (1 + 1e-9)
    assert min(asked) == pytest.approx(lowest) or max(asked) == pytest.approx(highest)
