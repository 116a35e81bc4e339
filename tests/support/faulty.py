"""An exact denoiser, and every fault that `check_denoiser` is to name, put into it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from volgrowth.numerics import Denoiser
from volgrowth.numerics.denoisers import per_image

SHAPE = (1, 8, 8)
VARIANCE = 0.25


class Exact(Denoiser):
    """The posterior mean of N(0, VARIANCE): what a fault is put into."""

    image_shape = SHAPE

    def __call__(self, y: Tensor, noise_level: Tensor) -> Tensor:
        level = noise_level.to(y).reshape(-1, 1, 1, 1)
        return VARIANCE / (VARIANCE + level**2) * y

    def sampling_levels(self, steps: int) -> Tensor:
        return torch.logspace(-2, 1, steps + 1)


class Noisy(Exact):
    """One that writes the noise, as adapters do."""

    def __call__(self, y: Tensor, noise_level: Tensor) -> Tensor:
        return y - per_image(noise_level, y) * self.noise(y, noise_level)

    def noise(self, y: Tensor, noise_level: Tensor) -> Tensor:
        level = per_image(noise_level, y)
        return level / (VARIANCE + level**2) * y


Change = Callable[[Tensor, Tensor, Tensor], Any]


def image(change: Change) -> Denoiser:
    """Exact, with what `__call__` answers changed: change(answer, y, level), the level shaped to meet y."""
    return _altered(Exact, "__call__", change)


def noise(change: Change) -> Denoiser:
    """The same of `noise`."""
    return _altered(Noisy, "noise", change)


def _altered(base: type[Exact], call: str, change: Change) -> Denoiser:
    def answer(self: Denoiser, y: Tensor, noise_level: Tensor) -> Any:
        return change(getattr(base, call)(self, y, noise_level), y, per_image(noise_level, y))

    return type("Altered", (base,), {call: answer})()


def other(**methods: Any) -> Denoiser:
    return type("Other", (Exact,), methods)()


def exact(y: Tensor, level: Tensor, slope: float = 1, shift: float = 0) -> Tensor:
    """Of images slope x + shift."""
    variance = VARIANCE * slope**2
    return variance / (variance + level**2) * (y - shift) + shift


def standardised(x: Tensor) -> Tensor:
    """x, by way of something that a flat image has none of."""
    deviation = x.std((1, 2, 3), keepdim=True)
    return x / deviation * deviation


def from_a_global_seed(x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return x + 0.01 * torch.randn(x.shape[1:])


def by_row(x: Tensor) -> Tensor:
    return x * torch.linspace(0.9, 1, len(x)).reshape(-1, 1, 1, 1)


class NoForwardMode(torch.autograd.Function):
    """x by way of numpy, differentiable backwards only."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy().copy())

    @staticmethod
    def setup_context(context: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


class TwoModes(NoForwardMode):
    """x, with a gradient that is twice what it is."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient

    @staticmethod
    def jvp(context: Any, tangent: Tensor) -> Tensor:
        return tangent.clone()


norm = torch.nn.BatchNorm2d(1, affine=False)
weight = torch.nn.Parameter(torch.zeros(1))
dropout = torch.nn.Dropout(0.1)
with_grad, without = torch.enable_grad(), torch.no_grad()

FAULTS: dict[str, dict[str, tuple[Denoiser, str]]] = {
    "FAIL shape": {
        "wrong shape": (image(lambda d, y, s: d[:, :, :4]), "gives (6, 1, 4, 8); expected (6, 1, 8, 8)"),
        "one number": (image(lambda d, y, s: d.mean()), "gives ()"),
        "no tensor": (image(lambda d, y, s: (d, s)), "gives tuple"),
        "float64": (image(lambda d, y, s: d.double()), "gives float64 on cpu; expected float32 on cpu, as y is"),
        "in place": (image(lambda d, y, s: y.mul_(0.9)), "changes y or noise_level"),
        "an error": (image(lambda d, y, s: d[99]), "raised IndexError: index 99"),
    },
    "FAIL finite": {
        "small levels": (image(lambda d, y, s: d + 0 * (s - 0.05).sqrt()), "not finite at noise level 0.01;"),
        "flat images": (image(lambda d, y, s: standardised(d)), "not finite at noise level 0.01;"),
    },
    "FAIL dependence": {
        "y not passed on": (image(lambda d, y, s: 0 * y + 0.1), "__call__ gives the same for any y"),
        "noise of nothing": (noise(lambda e, y, s: 0 * y + 0.1), "noise gives the same for any y"),
    },
    "FAIL consistency": {
        "other sign": (other(noise=lambda *call: -Exact.noise(*call)), "mend its sign and scale"),
        "the image as noise": (other(noise=Exact.__call__), "mend its sign and scale"),
    },
    "FAIL per image": {
        "over pixels": (image(lambda d, y, s: exact(y, s.mean())), "of shape (B,) and of shape ()"),
        "one number only": (image(lambda d, y, s: exact(y, s.reshape(()))), "raised RuntimeError"),
    },
    "FAIL batch": {
        "batch norm": (image(lambda d, y, s: d + 0.1 * norm(y)), "call .eval()"),
        "mean of the batch": (image(lambda d, y, s: d + 0.1 * (y - y.mean(0))), "take no mean over the batch"),
        "place in the batch": (image(lambda d, y, s: by_row(d)), "differs by"),
    },
    "FAIL determinism": {
        "dropout": (image(lambda d, y, s: dropout(d)), "two calls differ"),
        "global seed": (image(lambda d, y, s: from_a_global_seed(d)), "two calls agree, but torch's global random"),
    },
    "WARN weights": {
        "trainable": (image(lambda d, y, s: d + weight), "requires_grad_(False)"),
        "graph kept": (noise(lambda e, y, s: with_grad(lambda: e + weight)()), "a graph is kept under"),
    },
    "FAIL derivative": {
        "no_grad": (image(lambda d, y, s: without(exact)(y, s)), "no gradient from __call__ to y; expected one"),
        "no_grad in noise": (noise(lambda e, y, s: e.detach()), "no gradient from noise to y"),
        "half of it": (image(lambda d, y, s: d.detach() / 2 + d / 2), "cut off from the gradient"),
        "rounded": (image(lambda d, y, s: d + ((8 * d).round() / 8 - d).detach()), "rounded more coarsely"),
    },
    "FAIL forward mode": {"own modes": (image(lambda d, y, s: TwoModes.apply(d)), "forward and backward mode differ")},
    "WARN forward mode": {"none": (image(lambda d, y, s: NoForwardMode.apply(d)), "derivative=jvp cannot be used")},
    "FAIL meaning": {
        "sign": (noise(lambda e, y, s: -e), "noise is the opposite of the noise"),
        "sign, too small": (noise(lambda e, y, s: -e / 2), "noise is the opposite of the noise"),
        "noise as the image": (image(lambda d, y, s: (y - d) / s), "__call__ gives the noise"),
        "the image as noise": (noise(lambda e, y, s: y - s * e), "noise gives the clean image"),
    },
    "WARN denoising": {
        "pushed": (image(lambda d, y, s: d + 0.1 * (s < 0.05)), "off by 10 at noise level 0.01; expected below 3"),
        "wide": (image(lambda d, y, s: d + 0.3 * y * (s > 10)), "at noise level 80; expected below 0.11 of a trained"),
    },
    "FAIL orthogonal": {
        "shifts": (image(lambda d, y, s: d + 2 * s * y.roll(1, 3)), "none of the mistakes that were tried explains it"),
        "half the level": (
            image(lambda d, y, s: exact(y, s / 2)),
            "stands for 0.5 times the noise level that there is",
        ),
        "four times": (image(lambda d, y, s: exact(y, 4 * s)), "its label stands for 4 times the noise level"),
        "[0, 1]": (image(lambda d, y, s: exact(y, s, 0.5, 0.5)), "trained on images in [0, 1], and is shown"),
        "[0, 255]": (image(lambda d, y, s: exact(y, s, 127.5, 127.5)), "trained on images in [0, 255], and is shown"),
        "turned once": (image(lambda d, y, s: exact(y, s, 2, -1)), "and is shown images in [0, 1]"),
    },
    "FAIL sampling": {
        "falling": (other(sampling_levels=lambda *call: torch.tensor([9.0, 1.0])), "rising from above 0")
    },
}
