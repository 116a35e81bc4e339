import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.support.networks import Smooth, UNet, jacobian, randn
from volgrowth.numerics import Denoiser, EmpiricalDenoiser
from volgrowth.numerics.tangents import change_basis, noise_stack, orthonormal


@pytest.mark.parametrize("denoiser", [Smooth(6), EmpiricalDenoiser(randn(4, 2, 3))])
def test_jvp_is_the_dense_jacobian(denoiser: Denoiser) -> None:
    stack, level = randn(3, 1 + 4, 2, 3, seed=5), torch.tensor(0.7, dtype=torch.float64)
    dense = jacobian(lambda y: denoiser.noise(y, level), stack[:, 0])
    expected = torch.einsum("bij,bkj->bki", dense, stack[:, 1:].flatten(2)).reshape(3, 4, 2, 3)
    actual = noise_stack(denoiser, stack, 0.7, "jvp", 1.0)
    assert_close(actual[:, 1:], expected, rtol=1e-11, atol=1e-11)
    assert_close(actual[:, 0], denoiser.noise(stack[:, 0], level), rtol=1e-12, atol=1e-12)


def test_difference_errs_by_the_radius() -> None:
    stack = randn(3, 1 + 2, 6, seed=5)
    exact = noise_stack(Smooth(6), stack, 0.7, "jvp", 1.0)
    errors = [
        (noise_stack(Smooth(6), stack, 0.7, "difference", radius) - exact).norm().item()
        for radius in (1e-2, 5e-3, 2.5e-3)
    ]
    assert errors[0] > 1e-4  # else the ratios below would compare rounding
    assert 1.9 < errors[0] / errors[1] < 2.1
    assert 1.9 < errors[1] / errors[2] < 2.1


def test_attention_and_group_norm_have_derivatives() -> None:
    stack = randn(2, 1 + 2, 1, 8, 8, seed=5)
    exact = noise_stack(UNet(), stack, 0.7, "jvp", 1.0)
    differences = noise_stack(UNet(), stack, 0.7, "difference", 1e-6)
    assert exact[:, 1:].norm() > 0.01
    assert_close(differences, exact, rtol=1e-5, atol=1e-5 * exact.abs().max().item())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(k=st.integers(1, 6), seed=st.integers(0, 1000))
def test_orthonormal_factors(k: int, seed: int) -> None:
    tangents = randn(3, k, 2, 3, seed=seed)
    q, r = orthonormal(tangents)
    flat = q.flatten(2)
    assert_close(flat @ flat.mT, torch.eye(k, dtype=torch.float64).expand(3, k, k), rtol=0, atol=1e-12)
    assert_close((flat.mT @ r).mT, tangents.flatten(2), rtol=1e-12, atol=1e-12)
    assert (r.tril(-1) == 0).all()
    assert (r.diagonal(dim1=1, dim2=2) > 0).all()
    assert_close(change_basis(tangents, r), q, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("condition", [1.0, 1e4, 1e6])
def test_the_volume_is_that_of_the_singular_values(condition: float, dtype: torch.dtype) -> None:
    stretches = torch.logspace(0, -math.log10(condition), 8, dtype=torch.float64)
    left, right = (torch.linalg.qr(randn(3, size, 8, seed=size))[0] for size in (50, 8))
    q, r = orthonormal((left * stretches @ right.mT).mT.to(dtype))
    # what the tangents' own rounding does to the shortest axis
    error = 10 * condition * torch.finfo(dtype).eps
    assert_close(r.diagonal(dim1=1, dim2=2).double().log().sum(1), stretches.log().sum().expand(3), rtol=0, atol=error)
    assert_close(q @ q.mT, torch.eye(8, dtype=dtype).expand(3, 8, 8), rtol=0, atol=10 * torch.finfo(dtype).eps)


def test_dependent_tangents_span_no_volume_and_leave_other_images_alone() -> None:
    tangents = randn(3, 3, 6)
    tangents[1, 2], tangents[2, 1] = tangents[1, 0], 0.0
    q, r = orthonormal(tangents)
    assert_close(q[0] @ q[0].mT, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert not r[1, 2, 2] > 1e-7  # what rounding leaves, or nan
    assert r[2].isnan().any()


def test_an_orthonormal_frame_is_kept_and_not_mirrored() -> None:
    frame = torch.eye(3, dtype=torch.float64)[None] * torch.tensor([[1.0], [-1.0], [1.0]], dtype=torch.float64)
    q, r = orthonormal(frame)
    assert_close(q, frame, rtol=0, atol=1e-15)
    assert_close(r, torch.eye(3, dtype=torch.float64)[None], rtol=0, atol=1e-15)
