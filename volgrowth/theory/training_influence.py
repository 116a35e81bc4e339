r"""Which training images pull a model towards an image: Diffusion-TracIn and Diffusion-ReTrac (arXiv 2401.09031).

A step of gradient descent on a training image x, theta - eta grad L(x), changes the loss at an image q by
-eta <grad L(x), grad L(q)> to first order. Checkpoints k stand for the steps between them, and L is the denoising loss:

    L_s(x) = mean over noises e of |noise(x + s e, s) - e|^2 / D          at one noise level s
    TracIn(x, q) = sum_k eta_k <g(x), g(q)>        g = mean over s of grad L_s
    ReTrac(x, q) = sum_k eta_k <r(x), r(q)>        r = mean over s of grad L_s / |grad L_s|

Gradients are long at some levels for all images, and at all levels for some images; the first sum ranks those images
high for every q. In the second each level counts the same, and it does not change when an image's loss is scaled.

The paper trains beside the measurement and takes for x the one level and the noise that the step had, a single term of
these means. Of a finished model those are not known: here both images see the same levels and noises. Common noises
leave the order of the images less to chance than independent ones, and add about the same to all of them.

Gradients may be sketched to `width` numbers S g, (S g)_b = sum of sign_i g_i over the parameters i in bin b, with bins
and signs at random (count sketch; Charikar, Chen, Farach-Colton 2002). Then, over the draws of S,

    E <S g, S h> = <g, h>        Var <S g, S h> = (|g|^2 |h|^2 + <g, h>^2 - 2 sum_i g_i^2 h_i^2) / width

at most 2 |g|^2 |h|^2 / width, which is the variance of a dense Gaussian projection; but S is one integer a parameter.
Norms are those of the gradients themselves.
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

# numbers of all the gradients that are held at once, unless one is longer; more images at once save little time
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
        rate: eta_k, by which this checkpoint counts: learning rate times steps that it stands for.
    """

    denoiser: Denoiser
    network: nn.Module
    rate: float = 1.0


@dataclass(frozen=True)
class Influence:
    """Of each image on each query; the higher, the more a step on the image lowers the loss at the query.

    Attributes:
        raw: TracIn.
        normalised: ReTrac; at most the sum of the rates.
    """

    raw: Float[Tensor, "queries images"]
    normalised: Float[Tensor, "queries images"]


class CountSketch:
    """S of the module's docstring, for vectors of `size` numbers that come in pieces."""

    def __init__(self, size: int, width: int, generator: torch.Generator, device: torch.device | None = None):
        self.width = width
        # 2 b + (0 or 1): the bin and the sign
        self.codes = torch.randint(2 * width, (size,), generator=generator, dtype=torch.int32).to(device)

    def __call__(self, pieces: Sequence[Float[Tensor, "vectors _"]]) -> Float[Tensor, "vectors width"]:
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
    """Influence of training images on queries, in levels x checkpoints gradients an image.

    Args:
        checkpoints: each is let go before the next one is taken.
        images: states (*image), passed over once for each checkpoint and never held together.
        queries: states whose precision and device everything follows.
        noise_levels: the mean over s.
        num_noises: the mean over e; a gradient is one backward pass over so many states.
        generator: of noises and sketches, on the CPU; each checkpoint has its own.
        width: of the sketch; exact without.
        conditions, query_conditions: one for each, for models that take conditions.
        batch_size: images whose gradients are taken together; 1 for models that `torch.func.vmap` cannot take.

    Raises:
        ValueError: in one sentence, what does not fit.
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
    """<g(x), g(q)> and <r(x), r(q)>, (queries, images), float64."""
    of_queries = [torch.cat(rows) for rows in zip(*map(gradients, _batches(asked, size, asked[0][0])), strict=True)]
    if not of_queries[1].any():
        raise ValueError("the denoiser does not use the network's parameters: expected the module that it evaluates")
    columns: tuple[list[Tensor], list[Tensor]] = ([], [])
    for batch in _batches(given, size, asked[0][0]):
        for column, query, image in zip(columns, of_queries, gradients(batch), strict=True):
            column.append((query @ image.T).double().cpu())
    if not columns[0]:
        raise ValueError("there are no images: expected one or more")
    return torch.cat(columns[0], 1), torch.cat(columns[1], 1)


class _Gradients:
    """g and r of images at a checkpoint, sketched."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        noise_levels: Tensor,
        noises: Float[Tensor, "levels num_noises *image"],
        width: int | None,
        generator: torch.Generator,
    ):
        self.denoiser, self.loss = checkpoint.denoiser, _Loss(checkpoint.network)
        self.draws = list(zip(noise_levels.double().cpu(), noises, strict=True))
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
        """Gradients of the loss at one level, (images, parameters), parameter by parameter."""

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
    """L_s, with the network beside the denoiser so that other parameters can be put in its place."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, denoiser: Denoiser, image: Tensor, level: Tensor, noises: Images) -> Tensor:
        return (denoiser.noise(image + level.to(noises) * noises, level) - noises).square().mean()


def _batches(examples: Iterable[Example], size: int, like: Tensor) -> Iterator[tuple[Images, Condition]]:
    """Images stacked, and the condition of the first: with conditions there is one image in each."""
    examples = iter(examples)
    while some := list(islice(examples, size)):
        other = next((image.shape for image, _ in some if image.shape != like.shape), None)
        if other is not None:
            raise ValueError(f"an image has shape {tuple(other)}: expected that of the queries, {tuple(like.shape)}")
        yield torch.stack([image.to(like) for image, _ in some]), some[0][1]


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Without dropout, which would draw from the global generator."""
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _check(queries: Tensor, noise_levels: Tensor, num_noises: int, width: int | None) -> None:
    if not len(queries):
        raise ValueError("there are no queries: expected one or more")
    if not len(noise_levels) or not (noise_levels > 0).all():
        raise ValueError(f"noise_levels are {noise_levels.tolist()}: expected one or more above 0")
    for name, value in {"num_noises": num_noises, "width": width}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}: expected 1 or more")
