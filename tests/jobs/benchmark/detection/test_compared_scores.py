import sys
from math import log, sqrt

import numpy as np
import pytest
import torch

import volgrowth as vg
from jobs.benchmark.detection.compared_scores import (
    DDPM_SCHEDULE,
    LEVEL,
    SCORES,
    Score,
    evaluate,
    user_score,
)
from volgrowth.errors import UsageError
from volgrowth.models import load_model

BY_NAME = {score.name: score for score in SCORES}


class Counting(vg.Denoiser):
    """Counts the images whose noise it is asked for, and the backward passes through them."""

    def __init__(self, inner):
        self.inner, self.spent = inner, 0

    def noise(self, y, noise_level):
        self.spent += len(y)
        noise = self.inner.noise(y, noise_level)
        if noise.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(noise):
            noise.register_hook(lambda gradient: self._count(len(gradient)))
        return noise

    def _count(self, rows):
        self.spent += rows


def value(name, denoiser, images, seed=0):
    return evaluate(BY_NAME[name], denoiser, images, seed)


@pytest.fixture
def images():
    return torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 3


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.name)
def test_evaluations_are_what_is_spent(score, images):
    denoiser = Counting(vg.GaussianDenoiser(0.0, 0.3))
    score.function(denoiser, images, 0)
    # a derivative along a tangent evaluates the image again: it counts twice and calls once
    jvp = 1 if score.name == "sharpness" else 0
    assert denoiser.spent == len(images) * (score.nfe - jvp)


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.name)
def test_a_score_does_not_depend_on_the_batch(score, tiny_model):
    denoiser, images = load_model(str(tiny_model), dtype="float64"), torch.rand(4, 1, 8, 8, dtype=torch.float64) * 2 - 1
    whole = score.function(denoiser, images, 3)
    parts = torch.cat([score.function(denoiser, part, 3) for part in images.flip(0).split(3)]).flip(0)
    torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.name)
def test_a_model_that_has_collapsed_onto_an_image_scores_it_higher(score):
    """Data that is the image alone, against data that varies along half of the axes around another one."""
    variance = torch.zeros(1, 4, 4, dtype=torch.float64)
    variance[:, :2] = 0.1
    image = variance[None].sqrt() * torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    collapsed = evaluate(score, vg.GaussianDenoiser(image, 0.0), image, 0)
    assert collapsed > evaluate(score, vg.GaussianDenoiser(0.0, variance), image, 0)


def test_pia_on_a_gaussian_is_the_difference_of_its_linear_noises(images):
    first, then = DDPM_SCHEDULE.noise_level(torch.tensor([0.0, 200.0], dtype=torch.float64)).tolist()
    variance = 0.3
    noise = first / (variance + first**2) * images
    later = then / (variance + then**2) * (images + then * noise)
    expected = -(((noise - later) ** 4).flatten(1).sum(1) ** 0.25)
    np.testing.assert_allclose(value("pia", vg.GaussianDenoiser(0.0, variance), images), expected, rtol=1e-12)


def test_secmi_is_zero_where_the_flow_is_straight_and_second_order_elsewhere(images):
    """At a point mass y - x falls in proportion to the level, so a step forth and back ends where it began."""
    straight = value("secmi", vg.GaussianDenoiser(0.0, 0.0), images)
    np.testing.assert_allclose(straight, 0, atol=1e-20)
    curved = value("secmi", vg.GaussianDenoiser(0.0, 0.3), images)
    assert (curved < -1e-12).all()


def test_secmi_on_a_gaussian_is_the_product_of_its_linear_steps(images):
    variance = 0.3
    levels = DDPM_SCHEDULE.noise_level(torch.arange(0, 120, 10, dtype=torch.float64)).tolist()
    rate = [level / (variance + level**2) for level in levels]
    y = images.clone()
    for index in range(10):
        y = y * (1 + (levels[index + 1] - levels[index]) * rate[index])
    step = levels[11] - levels[10]
    back = y * (1 + step * rate[10]) * (1 - step * rate[11])
    expected = -((back - y) ** 2).flatten(1).sum(1)
    np.testing.assert_allclose(value("secmi", vg.GaussianDenoiser(0.0, variance), images), expected, rtol=1e-10)


def test_sharpness_and_curvature_of_a_point_mass(images):
    """J = I / level: the first is the length of the noise over the level, the second sqrt(D)."""
    denoiser, level = vg.GaussianDenoiser(0.0, 0.0), LEVEL
    point = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    noise = value("sharpness", denoiser, point, seed=7) * level
    assert 0 < noise[0] < 4 * sqrt(16)
    np.testing.assert_allclose(value("curvature", denoiser, images), sqrt(16), rtol=1e-9)
    np.testing.assert_allclose(value("noise_norm", denoiser, images), -images.flatten(1).norm(dim=1) / level)


def test_growth_of_a_point_mass_is_the_paper_s_first_step(images):
    """The first Euler step on the published schedule grows it by .43516 nats an axis, in x-coordinates."""
    for name in ("vgr", "vgr_common_axis"):
        np.testing.assert_allclose(value(name, vg.GaussianDenoiser(0.0, 0.0), images), 0.43516, atol=2e-5)


def test_likelihood_of_a_gaussian_ranks_as_its_density(images):
    denoiser = vg.GaussianDenoiser(0.0, 0.3)
    density = denoiser.log_prob(images, torch.tensor(0.0105, dtype=torch.float64)).numpy()
    assert (np.argsort(density) == np.argsort(value("likelihood", denoiser, images))).all()
    grown = value("volume", denoiser, images)
    assert np.ptp(grown) < 1e-9
    assert 0 < grown[0] < 16 * log(150 / 0.0105)


def test_a_user_s_function_is_a_score(tmp_path, monkeypatch, images):
    (tmp_path / "my_scores.py").write_text(
        "def brightness(denoiser, images, seed):\n    return images.flatten(1).mean(1)\nbrightness.nfe = 0\n"
        "def shapeless(denoiser, images, seed):\n    return images.mean()\n"
        "def infinite(denoiser, images, seed):\n    return images.flatten(1).mean(1) / 0\n"
        "def broken(denoiser, images, seed):\n    return images.no_such_thing\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    score = user_score("my_scores:brightness")
    assert (score.name, score.nfe) == ("my_scores:brightness", 0)
    np.testing.assert_allclose(evaluate(score, vg.GaussianDenoiser(0.0, 0.3), images, 0), images.flatten(1).mean(1))
    for name, said in (
        ("shapeless", "returned shape"),
        ("infinite", "returned numbers that are not finite"),
        ("broken", "failed with AttributeError"),
    ):
        with pytest.raises(UsageError, match=said):
            evaluate(user_score(f"my_scores:{name}"), vg.GaussianDenoiser(0.0, 0.3), images, 0)
    with pytest.raises(UsageError, match="is int: expected a function"):
        user_score("my_scores:number")


@pytest.mark.parametrize("name", ["nowhere", "a:b:c", ":f", "m:", "no_such_module:f", "math:no_such_function"])
def test_a_score_that_is_no_function_is_said_in_one_sentence(name):
    with pytest.raises(UsageError, match=r"^score '.*expected [^\n]+$"):
        user_score(name)


def test_values_are_numbers_of_python_s_precision(images):
    score = Score("half", lambda denoiser, images, seed: images.flatten(1).mean(1).float(), 0, "")
    assert evaluate(score, vg.GaussianDenoiser(0.0, 0.3), images, 0).dtype == np.float64
