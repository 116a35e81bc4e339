r"""Influence of training images on a model's loss at an image: Diffusion-TracIn and Diffusion-ReTrac (arXiv
2401.09031).

A step of gradient descent on a training image x, theta - eta grad L(x), changes the loss at a *query* image q by
-eta <grad L(x), grad L(q)> to first order. Checkpoints k stand for the steps between them, and L is the denoising loss:

    L_s(x) = mean over noises e of |noise(x + s e, s) - e|^2 / D          at one noise level s
    TracIn(x, q) = sum_k eta_k <g(x), g(q)>        g = mean over s of grad L_s
    ReTrac(x, q) = sum_k eta_k <r(x), r(q)>        r = mean over s of grad L_s / |grad L_s|

Some levels have long gradients for all images, and some images have long gradients at all levels; TracIn ranks those
images high for every q. In ReTrac each level counts the same, and scaling an image's loss changes nothing.

The paper measures during training and takes, for x, the one level and noise of the actual step, a single term of these
means. For a finished model they are not known: here both images see the same levels and noises. Common noises leave the
order of the images less to chance than independent ones, and add about the same to all of them.

Gradients may be sketched to `width` numbers S g, with (S g)_b = sum of sign_i g_i over the parameters i in bin b, for
random bins and signs (count sketch; Charikar, Chen, Farach-Colton 2002). Then, over the draws of S,

    E <S g, S h> = <g, h>        Var <S g, S h> = (|g|^2 |h|^2 + <g, h>^2 - 2 sum_i g_i^2 h_i^2) / width

at most 2 |g|^2 |h|^2 / width, the variance of a dense Gaussian projection, while S is one integer per parameter. Norms
are those of the gradients themselves, not of their sketches.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice, repeat

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from volgrowth.numerics.denoisers import Condition, Denoiser, Images

# limit to the numbers in all gradients that are held at once; larger batches than these save little time
AT_ONCE = 2**25
MOST_IMAGES = 16

Example = tuple[Tensor, Condition]
Rows = Float[Tensor, "images width"]


@dataclass(frozen=True)
class Checkpoint:
    """A model at one time of its training.

    Attributes:
        denoiser: the model.
        network: the module in it whose parameters were trained; they may be frozen, and stay so.
        rate: eta_k, the weight of this checkpoint: learning rate times the number of steps that it stands for.
    """

    denoiser: Denoiser
    network: nn.Module
    rate: float = 1.0


@dataclass(frozen=True)
class Influence:
    """Influence of each image on each query. The higher it is, the more a step on the image lowers the query's loss.

    Attributes:
        raw: TracIn, (queries, images) float64.
        normalised: ReTrac, (queries, images) float64, at most the sum of the rates.
    """

    raw: Float[Tensor, "queries images"]
    normalised: Float[Tensor, "queries images"]


class CountSketch:
    """The random projection S of the module's docstring.

    Args:
        size: length of the vectors.
        width: length of their sketches.
        generator: draws bins and signs.
        device: where the vectors are.
    """

    def __init__(self, size: int, width: int, generator: torch.Generator, device: torch.device | None = None):
        self.width = width
        # 2 b + (0 or 1): the bin and the sign
        self.codes = torch.randint(2 * width, (size,), generator=generator, dtype=torch.int32).to(device)

    def __call__(self, pieces: Sequence[Float[Tensor, "vectors _"]]) -> Float[Tensor, "vectors width"]:
        """Sketch vectors that come in pieces, in the order of their entries."""
        sums = pieces[0].new_zeros(len(pieces[0]), 2 * self.width)
        codes = self.codes.split([piece.shape[1] for piece in pieces])
        for piece, at in zip(pieces, codes, strict=True):
            for out, vector in zip(sums, piece, strict=True):  # many times faster than all at once along dimension 1
                out.index_add_(0, at, vector)
        return sums[:, 0::2] - sums[:, 1::2]


def influence(
    checkpoints: Iterable[Checkpoint],
    images: Iterable[Tensor],
    queries: Images,
    noise_levels: Float[Tensor, "levels"],
    num_noises: int = 1,
    *,
    generator: torch.Generator,
    width: int | None = None,
    conditions: Iterable[Condition] | None = None,
    query_conditions: Sequence[Condition] | None = None,
    batch_size: int | None = None,
) -> Influence:
    """Measure the influence of training images on queries, by levels x checkpoints gradients per image.

    Args:
        checkpoints: taken one after the other; each is released before the next one is taken.
        images: states (*image), iterated once per checkpoint and never held together.
        queries: (queries, *image) states, whose dtype and device all computations use.
        noise_levels: (levels,) above 0, which the mean over s takes.
        num_noises: noises per level, which the mean over e takes in one backward pass.
        generator: draws noises and sketches anew for each checkpoint, on the CPU.
        width: width of the sketch; None for exact gradients.
        conditions, query_conditions: one condition for each image and query, for models that take conditions.
        batch_size: images whose gradients are taken together; 1 for models that `torch.func.vmap` cannot take.

    Raises:
        ValueError: nothing to measure, images of another shape than the queries, or settings out of range.
    """
    _check(queries, noise_levels, num_noises, width)
    asked = list(zip(queries, query_conditions or repeat(None), strict=query_conditions is not None))
    raw, normalised = [], []
    for checkpoint in checkpoints:
        noises = torch.randn(len(noise_levels), num_noises, *queries[0].shape, generator=generator, dtype=queries.dtype)
        gradients = _Gradients(checkpoint, noise_levels, noises.to(queries), width, generator)
        given = zip(images, conditions or repeat(None), strict=conditions is not None)
        conditional = conditions is not None or query_conditions is not None
        size = 1 if conditional else batch_size or max(1, min(MOST_IMAGES, AT_ONCE // gradients.size))
        with _evaluating(checkpoint.network):
            products = _products(gradients, asked, given, size)
        raw.append(checkpoint.rate * products[0])
        normalised.append(checkpoint.rate * products[1])
    if not raw:
        raise ValueError("there are no checkpoints: expected one or more")
    return Influence(sum(raw[1:], raw[0]), sum(normalised[1:], normalised[0]))


def _products(
    gradients: "_Gradients", asked: list[Example], given: Iterable[Example], size: int
) -> tuple[Tensor, Tensor]:
    """Return <g(x), g(q)> and <r(x), r(q)>, each (queries, images) float64 on the CPU."""
    of_queries = [torch.cat(rows) for rows in zip(*map(gradients, _batches(asked, size, asked[0][0])), strict=True)]
    if not of_queries[1].any():
        raise ValueError("the denoiser does not use the network's parameters: expected the module that it evaluates")
    columns: tuple[list[Tensor], list[Tensor]] = ([], [])
    for batch in _batches(given, size, asked[0][0]):
        for column, query, image in zip(columns, of_queries, gradients(batch), strict=True):
            column.append((query @ image.T).cpu().double())
    if not columns[0]:
        raise ValueError("there are no images: expected one or more")
    return torch.cat(columns[0], 1), torch.cat(columns[1], 1)


class _Gradients:
    """The gradients g and r of images at a checkpoint, sketched if there is a width."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        noise_levels: Tensor,
        noises: Float[Tensor, "levels num_noises *image"],
        width: int | None,
        generator: torch.Generator,
    ):
        self.denoiser, self.loss = checkpoint.denoiser, _Loss(checkpoint.network)
        self.draws = list(zip(noise_levels.cpu().double(), noises, strict=True))
        parameters = self.loss.named_parameters()
        self.parameters = {name: value.detach() for name, value in parameters if value.is_floating_point()}
        self.size = sum(value.numel() for value in self.parameters.values())
        if not self.size:
            raise ValueError(f"the {type(checkpoint.network).__name__} has no parameters: expected a network with some")
        self.width = width or self.size
        self.sketch: Callable[[list[Tensor]], Tensor] = partial(torch.cat, dim=1)
        if width is not None:
            self.sketch = CountSketch(self.size, width, generator, noises.device)

    def __call__(self, batch: tuple[Images, Condition]) -> tuple[Rows, Rows]:
        images, condition = batch
        denoiser = self.denoiser if condition is None else self.denoiser.given([condition])
        raw, normalised = (images.new_zeros(len(images), self.width) for _ in range(2))
        for level, noises in self.draws:
            pieces = self._at(denoiser, images, level, noises)
            norm = torch.stack([piece.square().sum(1) for piece in pieces]).sum(0).sqrt()
            rows = self.sketch(pieces) / len(self.draws)
            # in place: exact rows are as long as the network, and there are many levels
            raw += rows
            normalised += rows.div_(norm.where(norm > 0, 1)[:, None])
        return raw, normalised

    def _at(
        self, denoiser: Denoiser, images: Images, level: Tensor, noises: Float[Tensor, "num_noises *image"]
    ) -> list[Tensor]:
        """Return the gradients of the loss at one level: for each parameter tensor, (images, its size)."""

        def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
            return functional_call(self.loss, parameters, (denoiser, image, level, noises))

        if len(images) == 1:
            gradients = grad(loss)(self.parameters, images[0])
        else:
            # the other kernels of attention are not written for vmap
            with sdpa_kernel(SDPBackend.MATH):
                gradients = vmap(grad(loss), in_dims=(None, 0))(self.parameters, images)
        return [gradient.reshape(len(images), -1) for gradient in gradients.values()]


class _Loss(nn.Module):
    """The loss L_s as a module that holds the network, so that its parameters can be replaced in a call."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, denoiser: Denoiser, image: Tensor, level: Tensor, noises: Images) -> Tensor:
        return (denoiser.noise(image + level.to(noises) * noises, level) - noises).square().mean()


def _batches(examples: Iterable[Example], size: int, like: Tensor) -> Iterator[tuple[Images, Condition]]:
    """Yield stacked images and the first one's condition; batches of models with conditions have one image."""
    examples = iter(examples)
    while some := list(islice(examples, size)):
        other = next((image.shape for image, _ in some if image.shape != like.shape), None)
        if other is not None:
            raise ValueError(f"an image has shape {tuple(other)}: expected that of the queries, {tuple(like.shape)}")
        yield torch.stack([image.to(like) for image, _ in some]), some[0][1]


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while, since it would draw from the global generator."""
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _check(queries: Tensor, noise_levels: Tensor, num_noises: int, width: int | None) -> None:
    """Check the settings of `influence`."""
    if not len(queries):
        raise ValueError("there are no queries: expected one or more")
    if not len(noise_levels) or not (noise_levels > 0).all():
        raise ValueError(f"noise_levels are {noise_levels.tolist()}: expected one or more above 0")
    for name, value in {"num_noises": num_noises, "width": width}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}: expected 1 or more")
