"""Forward mode through tensors that carry tangents, against torch.func.jvp in float64."""

import copy
import gc
import logging
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from tests.support.networks import UNet, randn, seeded
from volgrowth.numerics import Denoiser, VPSchedule, volume_growth
from volgrowth.numerics.forward import attention, dual, pushforward
from volgrowth.numerics.tangents import _ContiguousGroupNorm, noise_stack

VP = VPSchedule(0.1, 20.0)
bounded = settings(max_examples=15, deadline=None, derandomize=True)


def push(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    with torch.no_grad():
        moved = function(dual.Dual(rows))
    assert isinstance(moved, dual.Dual)
    return moved.rows


def expected(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH), _ContiguousGroupNorm():
        pairs = [torch.func.jvp(function, (rows[0],), (tangent,))[:2] for tangent in rows[1:]]
    return torch.stack([pairs[0][0], *(tangent for _, tangent in pairs)])


def check(function: Callable[[Tensor], Tensor], rows: Tensor, tolerance: float = 1e-12) -> None:
    actual, exact = push(function, rows), expected(function, rows)
    assert exact[1:].abs().max() > 0
    assert_close(actual, exact, rtol=tolerance, atol=tolerance * exact.abs().max().item())


@pytest.fixture
def only_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if an operation has no rule."""

    def refuse(op: Any, args: Any, kwargs: Any) -> None:
        raise AssertionError(f"{op} has no rule")

    monkeypatch.setattr(dual, "_in_general", refuse)


def in_place(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """Write into a copy."""

    def written(x: Tensor) -> Tensor:
        copy = x * 1.0
        function(copy)
        return copy

    return written


def fill_new(x: Tensor) -> Tensor:
    new = torch.zeros_like(x)
    new[:, 1:, ::2] = x[:, :-1, ::2]
    new[:, 0] = 1.0
    return new


def attend(mask: Tensor | None = None, **options: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: F.scaled_dot_product_attention(x, (x * 2).sin(), x**2, mask, **options)


PLAIN, VECTOR, MATRIX = randn(4, 6, 6, seed=7), randn(6, seed=8), randn(6, 5, seed=9)
KERNEL, BIAS, CONTEXT = randn(6, 4, 3, 3, seed=10), randn(6, seed=11), randn(2, 4, 3, 6, seed=12)
FOUR = randn(4, seed=13)
MASK = randn(6, 6, seed=14) > -0.5

# on x (2, 4, 6, 6)
WITH_RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "add number": lambda x: 3 + x,
    "add tensor": lambda x: x + PLAIN,
    "add alpha": lambda x: torch.add(PLAIN, x, alpha=3),
    "add larger": lambda x: x[0, :1] + randn(3, 1, 6, 6),
    "add of less axes": lambda x: x + x[0, 0].cos(),
    "sub": lambda x: x - PLAIN,
    "sub from": lambda x: torch.sub(PLAIN, x, alpha=0.5),
    "rsub": lambda x: 1 - x,
    "rsub alpha": lambda x: torch.rsub(x, PLAIN, alpha=3),
    "rsub both": lambda x: torch.rsub(x, x.sin(), alpha=3),
    "neg": lambda x: -x,
    "mul": lambda x: x * VECTOR * x.sin() * 2,
    "mul broadcast": lambda x: x[:, :1] * x[:, :, :1],
    "mul plain first": lambda x: randn(5, 1, 1, 1, 1) * x,
    "div": lambda x: x / VECTOR / (2 + x.cos()),
    "div by": lambda x: PLAIN / (2 + x.cos()) + 1 / (2 + x.sin()),
    "where": lambda x: torch.where(MASK, x, x.sin()) + torch.where(MASK, x, PLAIN),
    "functions": lambda x: x.exp() + x.erf() + (x.abs() + 1).log() + (x**2 + 1).sqrt() + (x**2 + 1).rsqrt(),
    "more functions": lambda x: x.sin() + x.cos() + x.expm1() + (x**2).log1p() + (x**2 + 1).reciprocal() + x.abs(),
    "powers": lambda x: x**2 + x**3 + (x**2 + 1) ** -0.5 + x.square(),
    "sum": lambda x: x.sum(1, keepdim=True) + x.sum((-1, -2), keepdim=True) + x.sum(),
    "mean": lambda x: x.mean(1, keepdim=True) + x.mean((2, -1), keepdim=True) + x.mean(),
    "view": lambda x: x.view(2, -1, 3).reshape(-1, 12).flatten(),
    "permute": lambda x: x.permute(0, 2, 3, 1).reshape(2, 36, 4).transpose(1, -1).mT,
    "t": lambda x: x[0, 0].t(),
    "expand": lambda x: x[:, :, :1].expand(-1, 4, 6, 6) + x[0, 0].expand(3, 2, 1, 6, 6)[1],
    "repeat": lambda x: x.repeat(1, 2, 1, 1) + x.repeat_interleave(2, dim=1),
    "slices": lambda x: x[:, 1:, ::2, -1] + x[0, 0, 0, 0] + x[:, :1, None, 1:4, 2],
    "lists": lambda x: x[:, [0, 2, 1, 1]] + x[:, :, 1:3, :1].squeeze(-1)[..., :1, None],
    "squeeze": lambda x: x[:, :1].squeeze(1).unsqueeze(0).unsqueeze(-1).squeeze() + x[:, :1, :1].squeeze()[:, None],
    "chunk": lambda x: x.chunk(2, 1)[1] * x.split([1, 3], 1)[0] + x.unbind(1)[2][:, None] + x.split(4, -1)[0].sum(),
    "cat": lambda x: torch.cat([x, PLAIN[None].expand(2, -1, -1, -1), x.sin()], 1),
    "stack": lambda x: torch.stack([x, x.sin()], -1),
    "flip": lambda x: x.flip(1, -1) + x.flip([0]),
    "roll": lambda x: torch.cat([x[:, 1:], x[:, :1]], 1),
    "copies": lambda x: x.clone().contiguous() + x.to(memory_format=torch.channels_last).type_as(PLAIN),
    "casts": lambda x: x.float().double() + x.to(torch.float64) + x.to(PLAIN),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1)) + F.pad(x, (1, 2, 0, 1), value=3.0),
    "reflect": lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect") + F.pad(x, (1, 2, 2, 1), mode="replicate"),
    "circular": lambda x: F.pad(x, (1, 2, 2, 1), mode="circular"),
    "convolution": lambda x: F.conv2d(x, KERNEL, BIAS, stride=2, padding=1),
    "convolution without bias": lambda x: F.conv2d(x, KERNEL[:, :2], padding=1, groups=2),
    "transposed convolution": lambda x: F.conv_transpose2d(x, KERNEL.transpose(0, 1), BIAS, stride=2),
    "convolution of sequences": lambda x: F.conv1d(x.flatten(2), KERNEL[..., 0], BIAS),
    "convolution of strided": lambda x: F.conv2d(x.transpose(2, 3)[..., ::2], KERNEL, BIAS),
    "linear": lambda x: F.linear(x, MATRIX.T, VECTOR[:5]) + F.linear(x[0, 0, 0], MATRIX.T),
    "matmul": lambda x: x @ MATRIX + PLAIN @ x @ MATRIX + x.sin() @ x @ MATRIX,
    "mm": lambda x: x[0, 0] @ x[1, 1] @ MATRIX + PLAIN[0] @ x[0, 1] @ MATRIX,
    "addmm": lambda x: torch.addmm(VECTOR, x[0, 0], x[1, 0], beta=2, alpha=3) + torch.addmm(x[0, 0], PLAIN[0], x[1, 0]),
    "baddbmm": lambda x: (
        torch.baddbmm(x[1], x[0], PLAIN, beta=0.5)
        + torch.baddbmm(torch.full((4, 6, 6), torch.nan).double(), x[0], x[1], beta=0, alpha=0.1)
    ),
    "einsum": lambda x: (
        torch.einsum("bchw,bdhw->bcd", x, x.sin()) + torch.einsum("bchw,w,dh->bcd", x, VECTOR, PLAIN[0, :4])
    ),
    "softmax": lambda x: x.softmax(-1) + x.softmax(1) + x.float().softmax(0, dtype=torch.float64),
    "activations": lambda x: F.silu(x) + F.gelu(x) + F.gelu(x, approximate="tanh") + F.mish(x) + F.softplus(x, 2.0),
    "more activations": lambda x: x.relu() + x.sigmoid() + x.tanh() + F.leaky_relu(x, 0.2) + F.elu(x) + F.hardswish(x),
    "group norm": lambda x: F.group_norm(x, 2, FOUR, FOUR + 1, 1e-4) + F.group_norm(x.mT, 2),
    "group norm of channels last": lambda x: (
        F.group_norm(x.to(memory_format=torch.channels_last), 2, FOUR, FOUR + 1)
        + F.group_norm((10 + x).to(memory_format=torch.channels_last), 4)
    ),
    "group norm of sequences": lambda x: F.group_norm(x.flatten(2), 4, FOUR),
    "layer norm": lambda x: (
        F.layer_norm(x, (6,), VECTOR, VECTOR + 1) + F.layer_norm(x, (6, 6)) + F.layer_norm(x.mT, (6,))
    ),
    "rms norm": lambda x: F.rms_norm(x, (6,), VECTOR) + F.rms_norm(x, (6, 6), eps=0.1),
    "attention": attend(),
    "attention scaled": attend(scale=0.3),
    "attention causal": attend(is_causal=True),
    "attention masked": attend(MASK | torch.eye(6, dtype=torch.bool)),
    "attention biased": attend(randn(2, 1, 1, 6)),
    "cross attention": lambda x: F.scaled_dot_product_attention(x, CONTEXT, CONTEXT.sin()),
    "attention of context": lambda x: (
        F.scaled_dot_product_attention(CONTEXT, x, x.sin())
        + F.scaled_dot_product_attention(CONTEXT, CONTEXT.sin(), x[:, :, :3])
    ),
    "upsample": lambda x: F.interpolate(x, scale_factor=2.0) + F.interpolate(x, size=(12, 12), mode="bilinear"),
    "antialiased": lambda x: (
        F.interpolate(x, size=(3, 4), mode="bilinear", antialias=True) + F.interpolate(x, size=(3, 4), mode="bicubic")
    ),
    "pool": lambda x: F.avg_pool2d(x, 2) + F.adaptive_avg_pool2d(x, 3) + F.adaptive_avg_pool2d(x, 1),
    "shuffle": lambda x: F.pixel_shuffle(x, 2).sum((1, 2, 3)) + F.pixel_unshuffle(x, 3).sum((1, 2, 3)),
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(x.reshape(-1, 2)) * torch.polar(FOUR, FOUR)[1]),
    "windows": lambda x: x.unfold(2, 3, 2),
    "dropout": lambda x: F.dropout(x, 0.5, training=False) * 2,
    "in place": in_place(lambda x: x.mul_(2).add_(PLAIN, alpha=2).sub_(x.sin()).div_(3)),
    "in place activations": in_place(lambda x: F.silu(F.relu(x, inplace=True), inplace=True)),
    "in place through a view": in_place(lambda x: x[:, 1:].view(2, 3, 36)[..., :5].add_(x[:, :1, 0, :5])),
    "assignment": in_place(lambda x: x[:, 0].copy_(x[:, 1, :1]) + x[:, 2].copy_(VECTOR) + x[:, 3, 1:].fill_(2.0).sum()),
    "new": fill_new,
}


@pytest.mark.usefixtures("only_rules")
@pytest.mark.parametrize("name", WITH_RULES)
def test_rules(name: str) -> None:
    # float32 is half as long as float64
    check(WITH_RULES[name], randn(1 + 3, 2, 4, 6, 6, seed=3), 1e-6 if name in ("casts", "softmax") else 1e-12)


GENERAL: dict[str, Callable[[Tensor], Tensor]] = {
    "integers": lambda x: x * x.long() + (x > 0) + x.argmax(1, keepdim=True),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "maximum": lambda x: torch.maximum(x, PLAIN),
    "largest": lambda x: x.max(1)[0],
    "sorted": lambda x: x.sort(-1).values,
    "gather": lambda x: x.gather(1, x.argsort(1)),
    "index with a gap": lambda x: x[:, [0, 1], :, [2, 3]],
    "index_select": lambda x: x.index_select(1, torch.tensor([2, 0])),
    "cumsum": lambda x: x.cumsum(2),
    "var": lambda x: x.var(1) + x.std((1, 2))[:, None],
    "norm": lambda x: x.norm(dim=1) + torch.linalg.vector_norm(x, dim=1),
    "prod": lambda x: x.prod(-1),
    "logsumexp": lambda x: x.logsumexp(1),
    "log_softmax": lambda x: x.log_softmax(1),
    "pow of tensors": lambda x: (x**2 + 1) ** x,
    "batch norm": lambda x: F.batch_norm(x, FOUR, FOUR**2, FOUR, FOUR),
    "max pool": lambda x: F.max_pool2d(x, 2),
    "masked fill": lambda x: x.masked_fill(MASK, 2.0),
    "in place": in_place(lambda x: x.clamp_(min=0).masked_fill_(MASK, 1.0)),
    "fourier": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * PLAIN[..., :4]),
    "scalar": lambda x: x * x.sum().float(),
    "roll": lambda x: x.roll(1, 2),
    "linear by a moving weight": lambda x: F.linear(PLAIN, x[0, 0]),
    "convolution with a moving kernel": lambda x: F.conv2d(PLAIN[None], x[:, :, :3, :3]),
    "shared keys": lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, :2], enable_gqa=True),
    "unbatched pool": lambda x: F.avg_pool2d(x[0], 2),
    "moving weights of norms": lambda x: F.group_norm(x, 2, x[0, :, 0, 0]) + F.layer_norm(x, (6,), x[0, 0, 0]),
}


@pytest.mark.parametrize("name", GENERAL)
def test_operations_without_a_rule(name: str) -> None:
    check(GENERAL[name], randn(1 + 3, 2, 4, 6, 6, seed=3), 1e-6 if name == "scalar" else 1e-12)


@bounded
@given(
    seed=st.integers(0, 999),
    k=st.integers(1, 3),
    heads=st.integers(1, 5),
    tokens=st.integers(1, 70),
    sources=st.integers(1, 9),
    entries=st.sampled_from([1, 100, 2**20]),
    kind=st.sampled_from(["plain", "causal", "masked"]),
)
def test_attention_in_blocks(seed: int, k: int, heads: int, tokens: int, sources: int, entries: int, kind: str) -> None:
    rows, weights = randn(1 + k, 2, heads, tokens, 3, seed=seed), randn(sources, tokens, seed=seed + 1)
    mask = randn(2, 1, tokens, sources) > -1 if kind == "masked" else None

    def attend(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, weights @ x, weights @ x.sin(), mask, is_causal=kind == "causal")

    if mask is not None:
        mask[..., 0] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK_ENTRIES", {"cpu": entries})
        actual = push(attend, rows)
    assert_close(actual, expected(attend, rows), rtol=1e-11, atol=1e-11)


@bounded
@given(
    seed=st.integers(0, 999),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    other=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    both=st.booleans(),
)
def test_broadcasting(seed: int, shape: list[int], other: list[int], both: bool) -> None:
    pairs = list(zip(shape[::-1], other[::-1], strict=False))
    other[len(other) - len(pairs) :] = [b if 1 in (a, b) else a for a, b in pairs][::-1]
    rows, plain = randn(1 + 2, *shape, seed=seed), randn(*other, seed=seed + 1)

    def combine(x: Tensor) -> Tensor:
        y = plain * x.mean() if both else plain
        return torch.cat([(op(x, y) + op(y, x)).flatten() for op in (torch.add, torch.sub, torch.mul, torch.div)])

    actual, exact = push(combine, rows), expected(combine, rows)
    assert_close(actual, exact, rtol=1e-9, atol=1e-11 * exact.abs().max().item())


def randomized(network: nn.Module) -> nn.Module:
    """Randomize weights, since adaptive norms start at 0."""
    generator = seeded(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return network.double().eval().requires_grad_(False)


UNET = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4}
LATENTS = {"in_channels": 4, "out_channels": 4}
TIME, TEXT, POOLED = torch.tensor([3.0, 5.0]), randn(2, 5, 16), randn(2, 12, seed=1)


def unet() -> Callable[[Tensor], Tensor]:
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    network = randomized(
        diffusers.UNet2DModel(**UNET, **LATENTS, **blocks, attention_head_dim=8, resnet_time_scale_shift="scale_shift")
    )
    return lambda y: network(y, TIME).sample


def conditional_unet() -> Callable[[Tensor], Tensor]:
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    network = randomized(
        diffusers.UNet2DConditionModel(**UNET, **LATENTS, **blocks, attention_head_dim=4, cross_attention_dim=16)
    )
    return lambda y: network(y, TIME, encoder_hidden_states=TEXT).sample


def dit() -> Callable[[Tensor], Tensor]:
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "num_embeds_ada_norm": 10}
    network = randomized(
        diffusers.DiTTransformer2DModel(in_channels=4, out_channels=8, sample_size=8, patch_size=2, **heads)
    )
    labels = torch.tensor([1, 2])
    return lambda y: network(y, timestep=TIME, class_labels=labels).sample[:, :4]


def sd3() -> Callable[[Tensor], Tensor]:
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "qk_norm": "rms_norm"}
    widths = {"joint_attention_dim": 16, "caption_projection_dim": 16, "pooled_projection_dim": 12}
    network = randomized(
        diffusers.SD3Transformer2DModel(sample_size=8, pos_embed_max_size=8, **LATENTS, **heads, **widths)
    )
    return lambda y: network(y, timestep=TIME, encoder_hidden_states=TEXT, pooled_projections=POOLED).sample


def flux() -> Callable[[Tensor], Tensor]:
    heads = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1, "num_single_layers": 1}
    widths = {"joint_attention_dim": 16, "pooled_projection_dim": 12, "axes_dims_rope": (4, 4, 8)}
    network = randomized(diffusers.FluxTransformer2DModel(patch_size=1, in_channels=16, **heads, **widths))
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))

    def noise(y: Tensor) -> Tensor:
        patches = y.view(2, 4, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 16, 16)
        result = network(
            patches, TEXT, POOLED, TIME / 10, img_ids=places, txt_ids=torch.zeros(5, 3), guidance=None
        ).sample
        return result.view(2, 4, 4, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(y.shape)

    return noise


@pytest.mark.parametrize("make", [unet, conditional_unet, dit, sd3, flux])
def test_networks(make: Callable[[], Callable[[Tensor], Tensor]], only_rules: None) -> None:
    # diffusers' RMS norm, in SD3, computes in float32
    check(make(), randn(1 + 2, 2, 4, 8, 8, seed=3), 1e-7 if make is sd3 else 1e-11)


@pytest.mark.parametrize("make", [unet, conditional_unet, dit])
def test_channels_last_and_inference_mode(make: Callable[[], Callable[[Tensor], Tensor]]) -> None:
    function, rows = make(), randn(1 + 2, 2, 4, 8, 8, seed=3)
    exact = push(function, rows)
    assert_close(push(lambda y: function(y.to(memory_format=torch.channels_last)), rows), exact, rtol=1e-9, atol=1e-11)
    with torch.inference_mode():
        assert_close(push(function, rows), exact, rtol=1e-9, atol=1e-11)


class Function(Denoiser):
    """noise = f(y)."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        self.function = function

    def noise(self, y: Tensor, noise_level: Tensor) -> Tensor:
        return self.function(y)


class Cast(Denoiser):
    """A UNet whose weights have another type than states and tangents."""

    def __init__(self, network: UNet, dtype: torch.dtype):
        self.inner, self.dtype = copy.deepcopy(network), dtype
        self.inner.network.to(dtype)

    def noise(self, y: Tensor, noise_level: Tensor) -> Tensor:
        time = VP.time(noise_level)
        return self.inner.eps((VP(time)[0].to(y) * y).to(self.dtype), time).to(y.dtype)


IMAGES = randn(8, 1, 8, 8, seed=6).sign()


@pytest.fixture(scope="module")
def trained() -> UNet:
    """Fit a UNet to the noise of eight images, since volumes hardly grow under random weights."""
    network, images, generator = UNet(seed=4), IMAGES, seeded(2)
    network.network.float().train()
    optimizer = torch.optim.Adam(network.network.parameters(), 3e-3)
    for _ in range(150):
        times = 0.02 + 0.98 * torch.rand(16, generator=generator).double()
        alpha, sigma = (scale.reshape(-1, 1, 1, 1) for scale in VP(times))
        x_0 = images[torch.randint(0, 8, (16,), generator=generator)]
        noise = torch.randn(x_0.shape, generator=generator).double()
        loss = (network.eps((alpha * x_0 + sigma * noise).float(), times.float()) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.network.double().eval()
    return network


TIMES = torch.tensor([0.02, 0.05, 0.2, 0.3, 0.6, 0.95], dtype=torch.float64)


def test_float32_is_exact_to_1e_5(trained: UNet) -> None:
    stack = randn(2, 1 + 3, 1, 8, 8)
    exact = noise_stack(Cast(trained, torch.float64), stack, 0.7, "jvp", 1.0)
    single = noise_stack(Cast(trained, torch.float32), stack.float(), 0.7, "jvp", 1.0).double()
    errors = (single - exact).flatten(2).norm(dim=2) / exact.flatten(2).norm(dim=2)
    assert errors.max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_networks(dtype: torch.dtype, trained: UNet) -> None:
    images, frame = IMAGES[:4], randn(4, 3, 1, 8, 8, seed=1)
    exact, low = (
        volume_growth(Cast(trained, each), images.to(states), VP, TIMES, tangents=frame.to(states))
        for each, states in ((torch.float64, torch.float64), (dtype, torch.float32))
    )
    assert exact.log_volume[:, -1].min() > 3
    errors = (low.log_volume[:, -1] / exact.log_volume[:, -1] - 1).abs()
    assert errors.mean() < 5e-3


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e6])
def test_float16_has_room_for_tangents_of_any_size(size: float, trained: UNet) -> None:
    rows = randn(1 + 2, 3, 1, 8, 8)
    network = Cast(trained, torch.float16)
    level = torch.tensor(0.7, dtype=torch.float64)
    unit = pushforward(lambda y: network.noise(y, level), rows)
    rows[1:] *= size
    scaled = pushforward(lambda y: network.noise(y, level), rows)
    assert_close(scaled[1:] / size, unit[1:], rtol=1e-2, atol=1e-2)


class Unwritten(nn.Module):
    """Writes into a tensor that carries no tangents."""

    def forward(self, y: Tensor) -> Tensor:
        buffer = torch.zeros(y.shape, dtype=y.dtype)
        buffer[:] = y**3
        return buffer


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    dual.say_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="volgrowth"):
        yield lambda: [record.getMessage() for record in caplog.records if record.name == "volgrowth"]


def test_an_operation_without_a_rule_is_said_once(said: Callable[[], list[str]]) -> None:
    for _ in range(3):
        push(lambda x: x.cumsum(1).cumsum(0) + x.sin(), randn(2, 2, 3))
    assert said() == ["aten.cumsum has no rule of its own: its derivative is taken by torch.func.jvp, exact but slower"]


def test_what_cannot_be_followed_goes_one_by_one(said: Callable[[], list[str]]) -> None:
    network, images = Function(Unwritten()), randn(2, 4)
    for _ in range(2):
        g = volume_growth(network, images, VP, TIMES[:3], num_tangents=3, generator=seeded())
        assert g.nfe == 2 * 3 * 2
    exact = volume_growth(Function(lambda y: y**3), images, VP, TIMES[:3], num_tangents=3, generator=seeded())
    assert exact.nfe == (1 + 3) * 2
    assert_close(g.log_volume, exact.log_volume, rtol=1e-12, atol=1e-12)
    (sentence,) = said()
    assert sentence.startswith("tangents go through Function one by one, exact but slower, since not at once: NoRule")


def test_an_error_of_the_network_stays_its_own() -> None:
    def wrong(y: Tensor) -> Tensor:
        raise KeyError("label")

    for _ in range(2):
        with pytest.raises(KeyError, match="label"):
            volume_growth(Function(wrong), randn(2, 4), VP, TIMES)
    with pytest.raises(RuntimeError, match="size"):
        volume_growth(Function(lambda y: y + randn(3)), randn(2, 4), VP, TIMES)


def test_an_error_without_a_message_is_named() -> None:
    def silent(y: Tensor) -> Tensor:
        raise NotImplementedError

    with pytest.raises(NotImplementedError, match=r"derivative \(NotImplementedError\): measure with"):
        volume_growth(Function(silent), randn(2, 4), VP, TIMES)


def test_running_out_of_memory_is_not_an_obstacle_to_tangents() -> None:
    calls = []

    def hungry(y: Tensor) -> Tensor:
        calls.append(y)
        raise torch.OutOfMemoryError("too large")

    with pytest.raises(torch.OutOfMemoryError):
        volume_growth(Function(hungry), randn(2, 4), VP, TIMES)
    assert len(calls) == 1


def test_compiled_networks_run_as_written() -> None:
    network, stack = UNet(), randn(2, 1 + 2, 1, 8, 8)
    exact = noise_stack(network, stack, 0.7, "jvp", 1.0)
    network.network = torch.compile(network.network, backend="eager")
    noise_stack(network, stack, 0.7, "difference", 1.0)
    assert_close(noise_stack(network, stack, 0.7, "jvp", 1.0), exact, rtol=0, atol=0)


def test_no_derivative_at_all() -> None:
    @torch.library.custom_op("volgrowth_tests::opaque", mutates_args=())
    def opaque(x: Tensor) -> Tensor:
        return x.clone()

    with pytest.raises(
        NotImplementedError, match=r"opaque.* is an operation whose .*: measure with derivative='difference'"
    ):
        volume_growth(Function(lambda y: opaque(y)), randn(2, 4), VP, TIMES)
    flat = noise_stack(Function(lambda y: y.round()), randn(2, 1 + 2, 4), 0.7, "jvp", 1.0)
    assert (flat[:, 1:] == 0).all()


def test_a_denoiser_that_is_a_gradient() -> None:
    """Forward over reverse: autograd runs on tensors that carry tangents."""

    def slope(y: Tensor) -> Tensor:
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            energy = (F.silu(F.conv2d(y, KERNEL[:, :2], padding=1)) ** 2).sum()
            return torch.autograd.grad(energy, y)[0]

    stack = randn(2, 1 + 2, 2, 4, 4)
    exact = noise_stack(Function(slope), stack, 0.7, "jvp", 1.0)
    difference = noise_stack(Function(slope), stack, 0.7, "difference", 1e-6)
    assert_close(exact, difference, rtol=1e-4, atol=1e-4)


def test_no_graph_and_no_tensors_are_kept() -> None:
    network = UNet()
    network.network.requires_grad_(True)
    result = noise_stack(network, randn(2, 1 + 2, 1, 8, 8), 0.7, "jvp", 1.0)
    assert not result.requires_grad
    gc.collect()
    assert not [x for x in gc.get_objects() if type(x) is dual.Dual]
