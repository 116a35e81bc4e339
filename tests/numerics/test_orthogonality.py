"""The regression of the true noise on answer and input, against what it must be."""

import pytest
import torch
from torch import Tensor

from tests.support.networks import randn, seeded
from volgrowth.numerics import GaussianDenoiser
from volgrowth.numerics.orthogonality import NoiseFit, combined, fit_noise, noise_moments

VARIANCE = torch.linspace(0.05, 1, 24, dtype=torch.float64).reshape(1, 4, 6)
LEVEL = 0.7


def moments(generator: torch.Generator) -> Tensor:
    e, clean = torch.randn(2, 48, 1, 4, 6, generator=generator, dtype=torch.float64)
    y = VARIANCE.sqrt() * clean + LEVEL * e
    answer = GaussianDenoiser(0.0, VARIANCE).noise(y, torch.tensor(LEVEL, dtype=torch.float64))
    return noise_moments(e, answer, y)


def test_coefficients_and_their_errors_hold_over_draws() -> None:
    generator = seeded()
    fits = [fit_noise(moments(generator), LEVEL) for _ in range(200)]
    for name, expected in (("of_answer", 1.0), ("of_input", 0.0)):
        found = torch.tensor([getattr(fit, name) for fit in fits])
        said = torch.tensor([getattr(fit, f"{name.removeprefix('of_')}_error") for fit in fits])
        assert found.mean().item() == pytest.approx(expected, abs=4 * found.std().item() / 200**0.5)
        assert said.mean().item() == pytest.approx(found.std().item(), rel=0.3)
    assert torch.tensor([fit.gain for fit in fits]).mean() <= 0
    assert all(fit.loss < fit.baseline for fit in fits)


def test_a_linear_mistake_has_the_coefficients_that_mend_it() -> None:
    right = moments(seeded())
    y_size = right[:, 2, 2].mean().sqrt().item()
    wrong = fit_noise(combined(right, 2.0, 0.5, 0.1), LEVEL)
    good: NoiseFit = fit_noise(right, LEVEL)
    assert wrong.of_answer == pytest.approx(good.of_answer / 2)
    assert wrong.of_input == pytest.approx(good.of_input - good.of_answer / 4 * y_size, rel=1e-6)
    assert wrong.loss * (1 - wrong.gain) == pytest.approx(good.loss * (1 - good.gain))


def test_an_answer_along_the_input_has_one_coefficient() -> None:
    e, clean = randn(8, 1, 4, 6), randn(8, 1, 4, 6, seed=1)
    y = clean + LEVEL * e
    fit = fit_noise(noise_moments(e, LEVEL / (1 + LEVEL**2) * y, y), LEVEL)
    assert (fit.of_input, fit.of_answer) == (0.0, fit.total)
    assert fit.collinearity == pytest.approx(1)
    assert fit.of_answer == pytest.approx(1, abs=0.2)
