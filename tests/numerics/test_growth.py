import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tests.support.networks import (
    SOLVERS,
    Counting,
    Scaled,
    Smooth,
    SolverName,
    UNet,
    encode,
    jacobian,
    log_levels,
    randn,
    seeded,
)
from volgrowth.numerics import (
    Denoiser,
    EmpiricalDenoiser,
    GaussianDenoiser,
    VESchedule,
    VPSchedule,
    volume_growth,
)
from volgrowth.numerics.growth import Coordinates, VolumeGrowth, initial_tangents
from volgrowth.numerics.tangents import Derivative

VP = VPSchedule(0.1, 20.0)
TIMES = torch.tensor([0.02, 0.05, 0.2, 0.3, 0.6, 0.95], dtype=torch.float64)
bounded = settings(max_examples=8, deadline=None, derandomize=True)
unchecked = inspect.unwrap(volume_growth)  # without beartype, which refuses some bad input first


def vp_scales(t: float) -> tuple[float, float]:
    integral = 19.9 * t * t / 2 + 0.1 * t
    return math.exp(-integral / 2), math.sqrt(-math.expm1(-integral))


def test_point_mass_with_published_defaults() -> None:
    """4.63362 is Euler's product, 0.43516 its first step; the continuous value is 4.55775."""
    g = volume_growth(GaussianDenoiser(0.0, 0.0), randn(1, 4), generator=seeded())
    logs = []
    for i in range(1, 1001):
        t = i / 1000
        # the score of a point mass at 0 is -x / sigma^2
        logs.append(math.log(1 - 0.001 * (0.1 + 19.9 * t) / 2 * (1 - 1 / vp_scales(t)[1] ** 2)))
    expected = torch.tensor(logs, dtype=torch.float64).cumsum(0)
    assert_close(g.log_volume[0], expected, rtol=0, atol=1e-9)
    assert_close(g.log_edges[0], expected, rtol=0, atol=1e-9)
    assert_close(g.ceiling, expected, rtol=0, atol=1e-9)
    assert g.log_volume[0, -1].item() == pytest.approx(4.63362, abs=5e-6)
    assert g.log_volume[0, 0].item() == pytest.approx(0.43516, abs=5e-6)
    assert g.nfe == 2000
    assert not g.above_ceiling.any()


@pytest.mark.parametrize("solver", ["ddim", "heun", "multistep"])
def test_point_mass_continuous(solver: SolverName) -> None:
    ends = torch.tensor([1e-3, 1.0], dtype=torch.float64)
    g = volume_growth(GaussianDenoiser(0.3, 0.0), randn(2, 4), VP, ends, solver=solver)
    exact = math.log(vp_scales(1.0)[1] / vp_scales(1e-3)[1])
    assert exact == pytest.approx(4.55775, abs=5e-6)
    assert_close(g.log_volume[:, -1], torch.full((2,), exact, dtype=torch.float64), rtol=0, atol=1e-9)
    assert_close(g.ceiling, torch.tensor([exact], dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("denoiser", [Smooth(4), EmpiricalDenoiser(randn(3, 2, 2))], ids=["network", "mixture"])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_volume_is_that_of_the_dense_jacobian(solver: SolverName, denoiser: Denoiser, k: int) -> None:
    """1/2 log det (J U)^T (J U) with J by reverse mode through a second implementation of the discrete map."""
    images = randn(2, 2, 2, seed=5) / 3
    g = volume_growth(denoiser, images, VP, TIMES, solver=solver, num_tangents=k, generator=seeded(2))
    dense = jacobian(lambda x: encode(denoiser, x, VP, TIMES, solver), images)
    frame = initial_tangents(images, None, k, seeded(2)).flatten(2)
    moved = dense @ frame.mT
    assert_close(g.log_volume[:, -1], (moved.mT @ moved).logdet() / 2, rtol=0, atol=1e-9)
    if k == 4:
        assert_close(g.log_volume[:, -1], torch.linalg.slogdet(dense).logabsdet, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_x_and_y_differ_by_the_signal_scale(solver: SolverName) -> None:
    x, y = (
        volume_growth(
            Smooth(4),
            randn(2, 4),
            VP,
            TIMES,
            solver=solver,
            num_tangents=3,
            coordinates=c,
            generator=seeded(),
        )
        for c in ("x", "y")
    )
    alphas = torch.tensor([vp_scales(t)[0] for t in TIMES.tolist()], dtype=torch.float64)
    drift = 3 * (alphas[1:] / alphas[0]).log()
    assert_close(x.log_volume - y.log_volume, drift.expand(2, 5), rtol=0, atol=1e-11)
    assert_close(x.log_edges - y.log_edges, drift.expand(2, 5), rtol=0, atol=1e-11)
    assert_close(x.ceiling - y.ceiling, drift, rtol=0, atol=1e-11)
    assert_close(x.endpoint, alphas[-1] * y.endpoint, rtol=1e-12, atol=0)


class Constant(Denoiser):
    """noise = M y, so that a ddim step of length 1 is the map 1 + M."""

    def __init__(self, matrix: Tensor):
        self.matrix = matrix

    def noise(self, y: Tensor, noise_level: Tensor) -> Tensor:
        return y @ self.matrix.T


def test_edges_overstate_an_anisotropic_map() -> None:
    """A full frame of a constant map of log det -1.35 a step: the edges grow by more than 2 a step."""
    step = torch.tensor([[0.9, 25.0], [0.0, math.exp(-1.35) / 0.9]], dtype=torch.float64)
    denoiser = Constant(step - torch.eye(2, dtype=torch.float64))
    levels = torch.arange(1, 12, dtype=torch.float64)
    g = volume_growth(denoiser, randn(1, 2), VESchedule(), levels, solver="ddim", num_tangents=2)
    assert_close(g.log_volume[0], -1.35 * torch.arange(1, 11, dtype=torch.float64), rtol=0, atol=1e-9)
    assert g.log_edges[0, -1] > 2 * 10


@bounded
@given(seed=st.integers(0, 99), k=st.integers(1, 4), solver=st.sampled_from(SOLVERS))
def test_edges_bound_the_volume(seed: int, k: int, solver: SolverName) -> None:
    g = volume_growth(Smooth(4, seed), randn(2, 4), VP, TIMES, solver=solver, num_tangents=k, generator=seeded(seed))
    gap = torch.cat([(g.log_edges - g.log_volume)[:, :1], (g.log_edges - g.log_volume).diff(dim=1)], 1)
    if k == 1:
        assert_close(gap, torch.zeros_like(gap), rtol=0, atol=1e-12)
    else:
        assert gap.min() > -1e-12
        assert gap.max() > 1e-8


@bounded
@given(seed=st.integers(0, 99), k=st.integers(2, 4), solver=st.sampled_from(SOLVERS))
def test_rotating_the_tangents_leaves_the_volume(seed: int, k: int, solver: SolverName) -> None:
    frame = randn(2, k, 2, 2, seed=seed)
    mixed = torch.einsum("ij,bj...->bi...", randn(k, k, seed=seed + 1), frame)
    one, other = (
        volume_growth(Smooth(4), randn(2, 2, 2), VP, TIMES, solver=solver, tangents=f) for f in (frame, mixed)
    )
    assert_close(one.log_volume, other.log_volume, rtol=0, atol=1e-9)
    assert (one.log_edges - other.log_edges).abs().max() > 1e-6  # which the edges do not share


def columns(g: VolumeGrowth) -> Tensor:
    return torch.cat([g.log_volume, g.log_edges, g.endpoint.flatten(1)], 1)


@bounded
@given(cut=st.integers(0, 5), order=st.permutations(range(5)), solver=st.sampled_from(SOLVERS))
def test_batches_do_not_matter(cut: int, order: list[int], solver: SolverName) -> None:
    images, frame = randn(5, 2, 2), randn(5, 2, 2, 2, seed=1)

    def rows(images: Tensor, frame: Tensor) -> Tensor:
        return columns(volume_growth(Smooth(4), images, VP, TIMES, solver=solver, tangents=frame))

    whole = rows(images, frame)
    parts = torch.cat([rows(images[:cut], frame[:cut]), rows(images[cut:], frame[cut:])])
    assert_close(parts, whole, rtol=1e-10, atol=1e-10)
    assert_close(rows(images[order], frame[order]), whole[order], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_memory_layout_does_not_matter(derivative: Derivative) -> None:
    images, network, times = randn(2, 2, 8, 8), UNet(channels=2), TIMES[[1, 3]]
    strided = torch.stack([images, images], -1)[..., 0]
    channels_last = images.to(memory_format=torch.channels_last)
    assert not strided.is_contiguous()
    assert not channels_last.is_contiguous()
    plain, *others = (
        columns(volume_growth(network, x, VP, times, derivative=derivative, generator=seeded()))
        for x in (images, channels_last, strided)
    )
    for other in others:
        assert_close(other, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("denoiser", [Smooth(4), EmpiricalDenoiser(randn(3, 4))], ids=["network", "mixture"])
def test_float32_agrees(solver: SolverName, denoiser: Denoiser) -> None:
    images, frame = randn(2, 4) / 3, randn(2, 2, 4, seed=1)
    double = volume_growth(denoiser, images, VP, TIMES, solver=solver, tangents=frame)
    single = volume_growth(denoiser, images.float(), VP, TIMES, solver=solver, tangents=frame.float())
    assert single.log_volume.dtype == torch.float32
    assert_close(single.log_volume.double(), double.log_volume, rtol=1e-5, atol=2e-5)
    assert_close(single.endpoint.double(), double.endpoint, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_difference_errs_by_the_radius(solver: SolverName) -> None:
    images, frame = randn(2, 4), randn(2, 2, 4, seed=1)
    exact = volume_growth(Smooth(4), images, VP, TIMES, solver=solver, tangents=frame).log_volume
    errors = []
    for radius in (1e-3, 5e-4):
        g = volume_growth(
            Smooth(4),
            images,
            VP,
            TIMES,
            solver=solver,
            derivative="difference",
            radius=radius,
            tangents=frame,
        )
        errors.append((g.log_volume - exact).norm().item())
    assert errors[0] > 1e-7
    assert 1.8 < errors[0] / errors[1] < 2.2


@bounded
@given(
    seed=st.integers(0, 999),
    k=st.integers(1, 3),
    mixture=st.booleans(),
    native=st.booleans(),
    start=st.floats(0.05, 0.5),
)
@pytest.mark.parametrize("solver", SOLVERS)
def test_no_exact_denoiser_passes_the_ceiling(
    solver: SolverName, seed: int, k: int, mixture: bool, native: bool, start: float
) -> None:
    points = randn(5, 3, seed=seed)
    denoiser: Denoiser = GaussianDenoiser(randn(3, seed=seed), randn(3, seed=seed + 1) ** 2)
    if mixture:
        denoiser = EmpiricalDenoiser(points)
    images = points + start * randn(5, 3, seed=seed + 2)  # where the data are
    levels = log_levels(start, 20.0, 24)
    times = VP.time(levels)
    if native and solver == "euler":
        times = torch.linspace(times[0].item(), 0.9, 25, dtype=torch.float64)
    g = volume_growth(denoiser, images, VP, times, solver=solver, num_tangents=k, generator=seeded(seed))
    calm = ~g.sign_flip
    assert calm.any()
    assert (g.log_volume[calm] <= g.ceiling + 1e-9).all()
    assert not g.above_ceiling[calm].any()
    if solver != "euler":
        scales = [vp_scales(t)[1] for t in times.tolist()]
        exact = torch.tensor([k * math.log(s / scales[0]) for s in scales[1:]], dtype=torch.float64)
        assert_close(g.ceiling, exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("derivative", ["jvp", "difference"])
@pytest.mark.parametrize("coordinates", ["x", "y"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_than_a_point_mass_is_marked(
    solver: SolverName, derivative: Derivative, coordinates: Coordinates, dtype: torch.dtype
) -> None:
    exact, wrong = (
        volume_growth(
            Scaled(factor),
            randn(2, 3).to(dtype),
            VP,
            TIMES,
            solver,
            derivative,
            coordinates=coordinates,
        )
        for factor in (1.0, 1.1)
    )
    assert exact.above_ceiling.tolist() == [False, False]
    assert wrong.above_ceiling.tolist() == [True, True]
    assert not wrong.sign_flip.any()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step_too_long_for_the_ridge_is_marked(solver: SolverName) -> None:
    """Half-way between two points the true volume collapses; a step of log 3 turns it into growth."""
    modes = EmpiricalDenoiser(torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64))
    images = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    frame = torch.tensor([[[1.0, 0.2]], [[1.0, 0.2]]], dtype=torch.float64)
    for steps, flips in ((1, [True, False]), (2, [True, False]), (120, [False, False])):
        g = volume_growth(modes, images, VESchedule(), log_levels(0.1, 0.3, steps), solver=solver, tangents=frame)
        assert g.sign_flip.tolist() == flips
    if solver == "heun":
        full = volume_growth(modes, images[:1], VESchedule(), log_levels(0.1, 0.3, 300), solver=solver, num_tangents=2)
        levels = torch.tensor([0.1, 0.3], dtype=torch.float64)
        exact = modes.log_prob(images[:1], levels[0]) - modes.log_prob(images[:1], levels[1])
        assert exact.item() < -40
        assert full.log_volume[0, -1].item() == pytest.approx(exact.item(), rel=2e-2)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("derivative", "k"), [("jvp", 1), ("jvp", 3), ("difference", 1), ("difference", 3)])
def test_nfe(solver: SolverName, derivative: Derivative, k: int) -> None:
    """A difference is one more image; with jvp the network sees images that carry their tangents, as much work."""
    counting = Counting(Smooth(4))
    g = volume_growth(counting, randn(2, 4), VP, TIMES, solver, derivative, num_tangents=k)
    assert g.nfe == counting.rows // 2 * (1 + k if derivative == "jvp" else 1)


def test_random_tangents_are_a_frame_from_the_generator() -> None:
    images = randn(3, 2, 2)
    one, again, other = (initial_tangents(images, None, 3, seeded(seed)) for seed in (1, 1, 2))
    assert one.tolist() == again.tolist()
    assert (one - other).abs().max() > 1e-2
    flat = one.flatten(2)
    assert_close(flat @ flat.mT, torch.eye(3, dtype=torch.float64).expand(3, 3, 3), rtol=0, atol=1e-12)


def test_a_broken_image_stays_alone() -> None:
    images, frame = randn(3, 4), randn(3, 2, 4, seed=1)
    whole = columns(volume_growth(Smooth(4), images, VP, TIMES, tangents=frame))
    images[1, 2] = math.nan
    rows = columns(volume_growth(Smooth(4), images, VP, TIMES, tangents=frame))
    assert rows[1].isnan().any()
    assert_close(rows[[0, 2]], whole[[0, 2]], rtol=1e-10, atol=1e-10)


def test_no_images_make_no_rows() -> None:
    g = volume_growth(Smooth(4), randn(0, 4), VP, TIMES, num_tangents=2)
    assert g.log_volume.shape == (0, 5)
    assert g.endpoint.shape == (0, 4)
    assert g.sign_flip.shape == (0,)


def test_trainable_weights_keep_no_graph() -> None:
    derivatives: tuple[Derivative, ...] = ("jvp", "difference")
    for derivative in derivatives:
        g = volume_growth(UNet(), randn(1, 1, 8, 8), VP, TIMES[:3], derivative=derivative)
        assert not any(value.requires_grad for value in (g.log_volume, g.log_edges, g.endpoint))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver": "rk4"}, "unknown solver 'rk4': expected one of euler, ddim, heun, multistep"),
        ({"derivative": "exact"}, "unknown derivative 'exact': expected one of jvp, difference"),
        ({"coordinates": "z"}, "unknown coordinates 'z': expected one of x, y"),
        ({"radius": 0.0}, r"radius is 0\.0: expected more than 0"),
        ({"times": TIMES[:1]}, r"times has one entry: expected steps \+ 1"),
        ({"times": TIMES.flip(0)}, r"entry 1 of the grid, 0\.6, .*: expected finite noise levels that rise"),
        ({"num_tangents": 0}, "num_tangents is 0: expected 1 to 4"),
        ({"num_tangents": 5}, "num_tangents is 5: expected 1 to 4, the image's dimension"),
        ({"tangents": randn(2, 1, 3)}, r"tangents have shape \(2, 1, 3\): expected \(2, k, 4\)"),
        ({"tangents": randn(1, 1, 4)}, r"tangents have shape \(1, 1, 4\): expected \(2, k, 4\)"),
        ({"tangents": randn(2, 4)}, r"tangents have shape \(2, 4\): expected \(2, k, 4\)"),
        ({"tangents": randn(2, 5, 4)}, "5 tangents in 4 dimensions: expected 1 to 4"),
        ({"tangents": randn(2, 0, 4)}, "0 tangents in 4 dimensions: expected 1 to 4"),
        ({"images": randn(4)}, r"images have shape \(4,\): expected \(B, \*image\)"),
        ({"images": randn(2, 4).bfloat16()}, "images are torch.bfloat16: expected float32 or float64"),
        ({"denoiser": EmpiricalDenoiser(randn(3, 5))}, r"images have shape \(2, 4\): expected \(B, 5\)"),
    ],
)
def test_bad_input(change: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"denoiser": Smooth(4), "images": randn(2, 4), "schedule": VP, "times": TIMES}
    with pytest.raises(ValueError, match=message):
        unchecked(**{**given, **change})


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_differences_of_low_precision_networks_are_refused(precision: torch.dtype) -> None:
    denoiser = GaussianDenoiser(0.0, 1.0)
    denoiser.precision = precision
    with pytest.raises(ValueError, match=r"a displacement of 0.05 is lost in its rounding; expected 'jvp', or the"):
        volume_growth(denoiser, torch.zeros(1, 4), derivative="difference")
    assert volume_growth(denoiser, torch.zeros(1, 4), times=torch.tensor([0.1, 0.2])).log_volume.isfinite().all()
