import traceback

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import volgrowth as vg
from volgrowth.audit.scoring.measures import (
    Flow,
    denoising_loss,
    launch_images,
    measure_images,
)
from volgrowth.audit.workers.seeding import seeded
from volgrowth.config import PaperMeasure, StandardMeasure, VolumeMeasure
from volgrowth.models import load_model


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


@pytest.mark.parametrize(
    "measure",
    [StandardMeasure(), PaperMeasure(), VolumeMeasure(), StandardMeasure(run_in=(), levels=(0.1, 0.2), num_probes=3)],
)
def test_evaluations_are_what_is_spent(measure):
    denoiser = Counting(vg.GaussianDenoiser(0.0, 0.3))
    measured = measure_images(Flow(denoiser), torch.randn(5, 1, 4, 4), list(range(5)), measure, seed=0)
    assert measured.nfe == measure.evaluations
    assert denoiser.forwards + denoiser.backwards == 5 * measured.nfe


def test_the_standard_preset_keeps_to_sixteen_evaluations():
    assert StandardMeasure().evaluations <= 16


def test_standard_growth_is_the_closed_form_on_gaussian_data():
    """With a diagonal Jacobian every Rademacher probe is exact: sum of level^2 / (variance + level^2)."""
    variance = torch.rand(1, 4, 4, dtype=torch.float64)
    images = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    measured = measure_images(Flow(vg.GaussianDenoiser(0.0, variance)), images, [0, 1, 2], StandardMeasure(), seed=0)
    expected = [(level**2 / (variance + level**2)).sum().item() for level in StandardMeasure().levels]
    np.testing.assert_allclose(measured.columns["growth"], np.mean(expected), rtol=1e-6)
    np.testing.assert_allclose(measured.columns["rates"], [expected] * 3, rtol=1e-6)


def test_loss_of_a_point_mass_is_zero_at_the_point_and_grows_away_from_it():
    point = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    point[1] += 0.34
    loss = denoising_loss(vg.GaussianDenoiser(0.0, 0.0), point, 0.34, 4, seed=0)
    assert loss.tolist() == pytest.approx([0.0, 1.0], abs=1e-12)


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


@pytest.mark.parametrize("measure", [StandardMeasure(), PaperMeasure(), VolumeMeasure()])
def test_a_score_depends_on_its_row_and_not_on_its_company(tiny_model, measure):
    denoiser = load_model(str(tiny_model), dtype="float64")
    images = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    whole = measure_images(Flow(denoiser), images, [10, 11, 12, 13], measure, seed=1)
    part = measure_images(Flow(denoiser), images[[3, 1]], [13, 11], measure, seed=1)
    for name, column in whole.columns.items():
        np.testing.assert_allclose(part.columns[name], column[[3, 1]], rtol=1e-9, atol=1e-12, err_msg=name)


class Copies(TorchDispatchMode):
    """Collects copies to the device that the host waits for."""

    def __init__(self):
        super().__init__()
        self.blocking = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and not kwargs.get("non_blocking"):
            device = torch.device(kwargs.get("device") or args[0].device)
            if device != args[0].device:
                self.blocking.append("".join(traceback.format_stack(limit=12)))
        return func(*args, **kwargs)


@pytest.mark.parametrize(
    "measure",
    [StandardMeasure(), VolumeMeasure(num_levels=3), PaperMeasure(num_steps=2), PaperMeasure(derivative="jvp")],
    ids=["standard", "volume", "difference", "jvp"],
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


def test_results_come_in_one_copy(tiny_model, monkeypatch):
    denoiser, calls = load_model(str(tiny_model)), []
    launched = launch_images(Flow(denoiser), torch.randn(3, 1, 8, 8), [0, 1, 2], StandardMeasure(), seed=0)

    def cpu(tensor):
        calls.append(1)
        return tensor

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    measured = launched.fetch()
    assert len(calls) == 1
    for name, column in launched.columns.items():
        np.testing.assert_array_equal(measured.columns[name], column.double().numpy(), err_msg=name)
    assert measured.above_ceiling.dtype == measured.sign_flip.dtype == bool


def test_rows_with_any_number_that_is_not_finite_are_seen():
    class Broken(vg.Denoiser):
        def noise(self, y, noise_level):
            return y / torch.where(y.flatten(1).sum(1) > 0, 1.0, 0.0).reshape(-1, 1, 1, 1)

    images = torch.ones(3, 1, 4, 4)
    images[1] *= -1
    measured = measure_images(Flow(Broken()), images, [0, 1, 2], StandardMeasure(loss_level=1e-6), seed=0)
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


def test_local_dimension_counts_the_directions_that_data_fills():
    """FLIPD of data that fills 5 of 16 dimensions, at a point of it, is 5 (arXiv 2406.03537)."""
    variance = torch.zeros(16, dtype=torch.float64)
    variance[:5] = 1.0
    denoiser = vg.GaussianDenoiser(0.0, variance.reshape(1, 4, 4))
    point = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    measured = measure_images(Flow(denoiser), point, [0], StandardMeasure(run_in=(), levels=(0.01,)), seed=0)
    assert measured.columns["lid"][0] == pytest.approx(5, abs=1e-3)
    assert measured.columns["growth"][0] == pytest.approx(11, abs=1e-3)
    assert measured.columns["noise_norm"][0] == 0


def test_the_standard_error_is_the_spread_over_seeds(tiny_model):
    denoiser = load_model(str(tiny_model), dtype="float64")
    images = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    runs = [measure_images(Flow(denoiser), images, [0, 1, 2, 3], StandardMeasure(), seed) for seed in range(60)]
    spread = np.std([run.columns["growth"] for run in runs], axis=0)
    error = np.sqrt(np.mean([run.columns["growth_error"] ** 2 for run in runs], axis=0))
    np.testing.assert_allclose(error, spread, rtol=0.35)


@pytest.mark.parametrize("measure", [StandardMeasure(run_in=(1e-6,)), VolumeMeasure(largest_level=1000)])
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
