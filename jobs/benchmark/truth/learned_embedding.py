"""What a learned embedding finds beside the hash: altered copies whose embedding is near enough to that of their image.

A small network learns by contrast, as SimCLR does (Chen et al., arXiv 2002.05709): two views of one image are to be
nearer to each other than to those of other images. It is trained on the images of the set that get no copies, with
views that are cropped, mirrored, recoloured, covered in part and noisy, and so for other strengths of some of the
alterations that it is judged by. Two images are alike from the cosine on that an audit takes by default, and from the
one on at which as many images as by the hash have a different image that near.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.benchmark.truth.alterations import ALTERATIONS
from jobs.benchmark.truth.grouping import SETS, Grouped, enlarge, group_copies
from jobs.experiments import Outcome, say
from volgrowth.config import AuditConfig
from volgrowth.demo.cases import to_tensor
from volgrowth.demo.training import Recipe, fit, one_thread

WIDTH, TEMPERATURE = 128, 0.1
SIMILARITY = AuditConfig.model_fields["embedding_similarity"].default
RECIPE = Recipe(channels=(32, 64, 128), steps=1500, batch=128)
# of a view: the smallest share of the side that is seen, the largest change of a channel's contrast and of brightness
# (black is -1, white 1), the share of the side that is covered, and the noise
SEEN, CONTRAST, BRIGHTNESS, COVERED, NOISE = 0.8, 0.4, 0.3, 0.35, 0.05
AT_ONCE = 512


def untrained_embedding(channels: int, widths: Sequence[int], side: int) -> nn.Sequential:
    """Return a network from images (B, C, side, side) to embeddings (B, `WIDTH`): convolutions, each of stride two."""
    layers = list[nn.Module]()
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, 2, 1), nn.GroupNorm(8, width), nn.GELU()]
        channels, side = width, (side + 1) // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side**2, WIDTH))


def view(images: Tensor) -> Tensor:
    """Return another view of each image (B, C, H, W) in [-1, 1], by what torch draws at random."""
    n, channels, height, width = images.shape
    seen = SEEN + (1 - SEEN) * torch.rand(n)
    mirrored = 1 - 2 * torch.randint(2, (n,)).float()
    shift = (1 - seen)[:, None] * (2 * torch.rand(n, 2) - 1)
    rows = (
        torch.stack([seen * mirrored, torch.zeros(n), shift[:, 0]], 1),
        torch.stack([torch.zeros(n), seen, shift[:, 1]], 1),
    )
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    seen_part = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    contrast = 1 + CONTRAST * (2 * torch.rand(n, channels, 1, 1) - 1)
    recoloured = (seen_part + 1) * contrast - 1 + BRIGHTNESS * (2 * torch.rand(n, 1, 1, 1) - 1)
    corner = torch.rand(n, 2, 1) * (1 - COVERED)
    down, right = torch.linspace(0, 1, height)[None], torch.linspace(0, 1, width)[None]
    covered = _within(down, corner[:, 0])[:, None, :, None] & _within(right, corner[:, 1])[:, None, None, :]
    mixed = torch.where(covered, (recoloured + 2 * torch.rand(n, 1, 1, 1) - 1) / 2, recoloured)
    return (mixed + NOISE * torch.randn_like(mixed)).clamp(-1, 1)


def _within(place: Tensor, begin: Tensor) -> Tensor:
    return (place >= begin) & (place <= begin + COVERED)


def contrastive_loss(first: Tensor, second: Tensor) -> Tensor:
    """Return the loss of SimCLR (NT-Xent, equation 1 there) of embeddings (B, d) of two views of the same images."""
    both = functional.normalize(torch.cat([first, second]), dim=1)
    alike = both @ both.T / TEMPERATURE
    alike.fill_diagonal_(-torch.inf)
    partner = torch.arange(len(both)).roll(len(first))
    return functional.cross_entropy(alike, partner)


def train_embedding(images: np.ndarray, recipe: Recipe = RECIPE, seed: int = 0) -> nn.Sequential:
    """Train an embedding of uint8 images (n, C, H, W)."""
    torch.manual_seed(seed)
    states = to_tensor(images)
    network = untrained_embedding(images.shape[1], recipe.channels, images.shape[2])

    def loss() -> Tensor:
        some = states[torch.randint(len(states), (recipe.batch,))]
        return contrastive_loss(network(view(some)), network(view(some)))

    fit(list(network.parameters()), loss, recipe)
    return network.eval()


@torch.no_grad()
def embed_images(network: nn.Module, images: np.ndarray) -> np.ndarray:
    """Return embeddings of length one of uint8 images (n, C, H, W), (n, `WIDTH`) float32."""
    parts = [functional.normalize(network(part), dim=1) for part in to_tensor(images).split(AT_ONCE)]
    found: np.ndarray = torch.cat(parts).numpy()
    return found


def nearest_other(embedded: np.ndarray) -> np.ndarray:
    """Return the cosine of each image (n, d) and the image that is nearest to it, (n,)."""
    alike = embedded @ embedded.T
    np.fill_diagonal(alike, -1)
    found: np.ndarray = alike.max(1)
    return found


def threshold_for(nearest: np.ndarray, mistaken: int) -> float:
    """Return the lowest cosine from which on at most so many of these images (n,) have a different image that near."""
    if mistaken >= len(nearest):
        return -1.0
    return float(np.nextafter(np.sort(nearest)[::-1][mistaken], np.float32(2)))


def measure_learned(folder: Path, names: Sequence[str] = tuple(SETS), recipe: Recipe = RECIPE) -> Outcome:
    """Return the tables of the page: what hash and embedding find of each kind in each set, and what they mistake.

    Args:
        folder: the image sets; those that are not there are left out, which is said.
        names: sets to measure.
        recipe: of the training.
    """
    rows, others, said = list[dict[str, Any]](), list[dict[str, Any]](), list[str]()
    for name in names:
        file, read = SETS[name]
        if file and not (folder / file).exists():
            said.append(f"Left out, since its images are not there: {name}.")
            continue
        grouped = group_copies(enlarge(read(folder)))
        images, with_copies = grouped.kind == "", np.unique(grouped.origin[grouped.kind != ""])
        say(f"training an embedding of {name}: {recipe.steps} steps")
        with one_thread():
            network = train_embedding(grouped.pixels[np.setdiff1d(np.flatnonzero(images), with_copies)], recipe)
        embedded = embed_images(network, grouped.pixels)
        nearest, by_hash = nearest_other(embedded[images]), grouped.mistaken
        matched = threshold_for(nearest, int(by_hash.sum()))
        rows += [{"set": name, **_row(kind, grouped, embedded, matched)} for kind in ALTERATIONS]
        others.append(
            {
                "set": name,
                "images": int(images.sum()),
                "by the hash, %": _percent(by_hash),
                f"from {SIMILARITY:g} on, %": _percent(nearest >= SIMILARITY),
                "cosine for the mistakes of the hash": f"{matched:.3f}",
            }
        )
    return Outcome(said, {"table": rows, "others": others}, {"steps": recipe.steps, "images a step": recipe.batch})


def _row(kind: str, grouped: Grouped, embedded: np.ndarray, matched: float) -> dict[str, Any]:
    mine = grouped.kind == kind
    cosine = np.einsum("ij,ij->i", embedded[mine], embedded[grouped.origin[mine]])
    shares = {
        "by the hash": grouped.found(kind),
        f"from {SIMILARITY:g} on": cosine >= SIMILARITY,
        "at the mistakes of the hash": cosine >= matched,
    }
    return {"copies": kind} | {f"{name}, %": _percent(mask) for name, mask in shares.items()}


def _percent(mask: np.ndarray) -> str:
    return f"{100 * mask.mean():.1f}"
