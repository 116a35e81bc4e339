"""Derivatives against central differences, and differences in true float32."""

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch

import volgrowth as vg
from volgrowth.audit.scoring.derivatives import Differenced, derivative_deviation, has_derivative, true_float32
from volgrowth.audit.scoring.measures import Flow, measure_images
from volgrowth.config import PaperMeasure, VolumeMeasure
from volgrowth.models import load_model

backends: Any = torch.backends  # torch's stubs do not know its switches


def precisions():
    cudnn, cpu = backends.cudnn, backends.mkldnn
    kinds = [backends.cuda.matmul, cudnn.conv, cudnn.rnn, cpu.matmul, cpu.conv, cpu.rnn]
    old: list[object] = [None, None]
    with suppress(RuntimeError):  # torch will not read an old switch that cannot say what the new ones do
        old = [torch.get_float32_matmul_precision(), cudnn.allow_tf32]
    return [kind.fp32_precision for kind in kinds], old


@pytest.fixture
def own_precisions():
    """What a test allows is forbidden again."""
    yield
    backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = True
    for kind in (backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn):
        kind.fp32_precision = "none"


def allow_nothing():
    pass


def allow_the_old_way():
    backends.cuda.matmul.allow_tf32 = True


def allow_in_words():
    torch.set_float32_matmul_precision("medium")


def allow_everywhere():
    backends.fp32_precision = "tf32"


def allow_convolutions():
    backends.cudnn.conv.fp32_precision = backends.cudnn.rnn.fp32_precision = "tf32"
    backends.mkldnn.conv.fp32_precision = "bf16"


@pytest.mark.skipif(not hasattr(backends.cudnn, "conv"), reason="torch before 2.9 has other switches")
@pytest.mark.parametrize(
    "allow", [allow_nothing, allow_the_old_way, allow_in_words, allow_everywhere, allow_convolutions]
)
def test_true_float32_covers_every_product_and_restores_what_it_found(allow, own_precisions):
    allow()
    before = precisions()
    with true_float32():
        assert precisions() == (["ieee"] * 6, ["highest", False])
        assert not backends.cuda.matmul.allow_tf32
    assert precisions() == before


def test_a_difference_is_the_same_whatever_precision_is_allowed(tiny_model, own_precisions):
    """On processors that multiply bfloat16 this is more than switches: there it would be lost."""
    denoiser, images = load_model(str(tiny_model)), torch.randn(3, 1, 8, 8)
    first = measure_images(Flow(denoiser), images, [0, 1, 2], PaperMeasure(), seed=0).columns["growth"]
    allow_in_words()
    backends.mkldnn.conv.fp32_precision = "bf16"
    again = measure_images(Flow(denoiser), images, [0, 1, 2], PaperMeasure(), seed=0).columns["growth"]
    np.testing.assert_array_equal(again, first)


@pytest.mark.parametrize("measure", [VolumeMeasure(num_levels=4)])
def test_growth_by_central_differences_is_growth_by_backward_passes(tiny_model, measure):
    denoiser, images = load_model(str(tiny_model), dtype="float64"), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    exact = measure_images(Flow(denoiser), images, [0, 1, 2], measure, seed=0)
    found = measure_images(Flow(Differenced(denoiser)), images, [0, 1, 2], measure, seed=0)
    np.testing.assert_allclose(found.columns["growth"], exact.columns["growth"], rtol=1e-3, atol=0.005 * 64)
    assert found.nfe == exact.nfe + measure.num_levels * measure.num_probes


def check(denoiser, exact, measure):
    images = 0.5 * torch.randn(4, *denoiser.image_shape, generator=torch.Generator().manual_seed(0))
    return derivative_deviation(denoiser, exact, images.to(denoiser.dtype), measure, seed=0)["deviation"]


@pytest.mark.parametrize("measure", [VolumeMeasure(), PaperMeasure(derivative="jvp")], ids=["volume", "jvp"])
@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-3), ("float32", 1e-2), ("bfloat16", 5e-2)])
def test_right_derivatives_deviate_little(tiny_model, measure, dtype, most):
    exact = load_model(str(tiny_model), dtype="float32" if dtype == "bfloat16" else dtype)
    assert check(load_model(str(tiny_model), dtype=dtype), exact, measure) < most


class Hidden(vg.GaussianDenoiser):
    """Rounds on its way, which has the derivative 0 almost everywhere, and is none of the network's slope."""

    image_shape = (1, 8, 8)

    def noise(self, y, noise_level):
        return (super().noise(y, noise_level) * 1e5).round() / 1e5


@pytest.mark.parametrize("measure", [VolumeMeasure()])
def test_a_derivative_that_is_hidden_deviates(measure):
    denoiser = Hidden(0.0, 0.5)
    assert has_derivative(denoiser, torch.randn(2, 1, 8, 8), measure)
    assert check(denoiser, denoiser, measure) > 0.5


class Full(vg.GaussianDenoiser):
    """Evaluates, and has no memory for a backward pass."""

    image_shape = (1, 8, 8)

    def noise(self, y, noise_level):
        if torch.is_grad_enabled():
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return super().noise(y, noise_level)


def test_a_device_without_memory_is_no_network_without_a_derivative():
    with pytest.raises(RuntimeError, match="ALLOC_FAILED"):
        has_derivative(Full(0.0, 0.5), torch.randn(2, 1, 8, 8), VolumeMeasure())


def test_differences_of_a_network_in_bfloat16_deviate(tiny_model):
    """What the settings refuse, shown to be what the self-check would find."""
    low, exact = load_model(str(tiny_model), dtype="bfloat16"), load_model(str(tiny_model))
    assert check(low, exact, PaperMeasure()) > 0.05
    assert check(exact, exact, PaperMeasure()) < 0.05
