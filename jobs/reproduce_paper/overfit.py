"""The paper's first experiment: images on which a network was overfitted, against held-out ones.

overfit    volume growth along the whole flow, trained against held out
degrees    the same networks after fewer steps of training: growth and sample hits as memorization sets in
"""

from functools import lru_cache

import numpy as np
from scipy.ndimage import zoom
from scipy.stats import mannwhitneyu

from jobs.benchmark.detection.suite import Setup
from jobs.charts import Line, column_dots, curves
from jobs.experiments import Outcome, say
from jobs.reproduce_paper.published import Growth, published_growth
from jobs.reproduce_paper.retraining import mean_loss
from jobs.reproduce_paper.workshop import Workshop
from volgrowth.analysis.ranking import auroc
from volgrowth.audit.sampling.drawing import draw_samples
from volgrowth.demo.cases import digit_images
from volgrowth.demo.training import Recipe, train_model
from volgrowth.demo.truth import find_reproduced
from volgrowth.models import load_model
from volgrowth.numerics import Denoiser
from volgrowth.report.charts.figures import ACCENT, COOL, MUTED

BATCH = 32

# axes and steps of the shorter measurement that tells which network memorizes
SHORT = (10, 100)


@lru_cache(maxsize=1)
def trained_and_held_out(shop: Workshop) -> tuple[np.ndarray, np.ndarray]:
    """Return the trained and the held-out images, (n, C, H, W) uint8 each, dealt at random from the seed."""
    if shop.data is None:
        images = enlarged(digit_images())
    else:
        images = Setup("overfit", shop.data.name, 0, (), Recipe()).images(shop.folder)
    order = np.random.default_rng(shop.seed).permutation(len(images))
    count = shop.sizes.images
    return images[order[:count]], images[order[count : 2 * count]]


def enlarged(images: np.ndarray, factor: float = 1.5) -> np.ndarray:
    """Enlarge images (n, C, H, W) uint8: digits of 8x8 have 64 dimensions, and the paper follows 100 axes."""
    return np.clip(np.round(zoom(images.astype(float), (1, 1, factor, factor), order=1)), 0, 255).astype(np.uint8)


def _network(shop: Workshop, steps: int) -> Denoiser:
    """Train a network on the trained images for so many steps, or load the one that `shop.models` has."""
    recipe = Recipe(shop.sizes.channels, steps, BATCH)
    name = f"overfit-{shop.data.stem if shop.data else 'digits'}-{shop.sizes.images}-{shop.seed}-"
    folder = shop.models / (name + "-".join(map(str, (*recipe.channels, steps))))
    if not (folder / "model_index.json").exists():
        say(f"training on {shop.sizes.images} images for {steps} steps")
        train_model(trained_and_held_out(shop)[0], folder, shop.seed, recipe)
    return load_model(str(folder))


def overfit(shop: Workshop) -> Outcome:
    """Volume of many axes along the whole flow, trained images against held-out ones."""
    sizes, sides = shop.sizes, trained_and_held_out(shop)
    axes = min(sizes.axes, int(np.prod(sides[0].shape[1:])))
    denoiser = _network(shop, sizes.overfit_steps[-1])
    say(f"following {len(sides[0])} trained and as many held-out images, {axes} axes, {sizes.steps} steps")
    growths = [published_growth(denoiser, images, axes, sizes.steps) for images in sides]
    measured = dict(zip(("trained", "held out"), growths, strict=True))
    ours, others = ends = [growth.volume[:, -1] for growth in growths]
    ceiling = float(growths[0].ceiling[-1])
    return Outcome(
        sentences=[
            f"e^{ours.mean():.0f} trained against e^{others.mean():.0f} held out, "
            f"{(ours.mean() - others.mean()) / axes:.2f} nats per axis apart. The lowest trained image is at "
            f"{ours.min():.0f}, the highest held-out one at {others.max():.0f} "
            f"(Mann-Whitney p = {mannwhitneyu(ours, others, alternative='greater').pvalue:.0e}).",
            f"{(ours > ceiling).sum()} of {len(ours)} trained images and {(others > ceiling).sum()} of {len(others)} "
            f"held-out ones lie above {ceiling:.0f}, where a point mass is with the same steps.",
            "Edges before orthogonalisation, which the authors' code sums, exceed the volume by up to "
            f"{np.abs(growths[0].edges[:, -1] - ours).max():.1f} nats.",
        ],
        tables={"table": [_overfit_row(name, growth) for name, growth in measured.items()]},
        settings={
            "trained images": len(ours),
            "shape": "x".join(map(str, sides[0].shape[1:])),
            "channels of the UNet": sizes.channels,
            "training steps": sizes.overfit_steps[-1],
            "batch": BATCH,
            "axes": axes,
            "steps of the published 1000": sizes.steps,
            "evaluations an image": f"{growths[0].nfe:,}",
        },
        figures={
            "overfit": column_dots(
                dict(zip(measured, ends, strict=True)), "log volume, nats", ceiling, f"point mass {ceiling:.0f}"
            )
        },
        stored={
            "images": [
                {"images": name, "log volume": volume, "log edges": edges}
                for name, growth in measured.items()
                for volume, edges in zip(growth.volume[:, -1], growth.edges[:, -1], strict=True)
            ]
        },
    )


def _overfit_row(name: str, growth: Growth) -> dict[str, object]:
    volume, edges = growth.volume[:, -1], growth.edges[:, -1]
    return {
        "images": name,
        "count": len(volume),
        "mean": volume.mean(),
        "sd": volume.std(ddof=1),
        "lowest": volume.min(),
        "highest": volume.max(),
        "edges, mean": edges.mean(),
        "exact bound": growth.ceiling[-1],
        "above it": growth.above_ceiling.sum(),
        "sign flips": growth.sign_flip.sum(),
    }


def degrees(shop: Workshop) -> Outcome:
    """Growth and sample hits of networks trained for more and more steps on the same images."""
    rows = [_degree_row(shop, steps) for steps in shop.sizes.overfit_steps]
    told = next((row["training steps"] for row in rows if row["AUROC"] >= 0.95), "no number of")
    copied = next((row["training steps"] for row in rows if row["hits, trained"] >= 0.1), "no number of")
    panels = {
        "log volume, nats per axis": [
            Line("trained", [row["trained"] for row in rows], ACCENT),
            Line("held out", [row["held out"] for row in rows], COOL),
            Line("point mass", [row["bound"] for row in rows], MUTED, dashed=True),
        ],
        "share of samples that hit": [
            Line("trained", [row["hits, trained"] for row in rows], ACCENT),
            Line("held out", [row["hits, held out"] for row in rows], COOL),
        ],
    }
    return Outcome(
        sentences=[
            f"Growth tells trained from held-out images at AUROC .95 from {told} steps on; a tenth of the samples are "
            f"copies from {copied} steps on."
        ],
        tables={"table": rows},
        settings={
            "images": shop.sizes.images,
            "axes": SHORT[0],
            "steps": SHORT[1],
            "samples": shop.sizes.overfit_samples,
        },
        figures={"degrees": curves(shop.sizes.overfit_steps, panels, "steps of training")},
    )


def _degree_row(shop: Workshop, steps: int) -> dict[str, float]:
    sides, denoiser = trained_and_held_out(shop), _network(shop, steps)
    say(f"measuring the network of {steps} steps")
    axes, length = min(SHORT[0], int(np.prod(sides[0].shape[1:]))), min(SHORT[1], shop.sizes.steps)
    growths = [published_growth(denoiser, images, axes, length) for images in sides]
    ours, others = (growth.volume[:, -1] / axes for growth in growths)
    samples = draw_samples(denoiser, range(shop.sizes.overfit_samples), seed=0)
    found = find_reproduced(samples, *sides)
    return {
        "training steps": steps,
        "loss, trained": mean_loss(denoiser, sides[0]),
        "loss, held out": mean_loss(denoiser, sides[1]),
        "trained": float(ours.mean()),
        "held out": float(others.mean()),
        "bound": float(growths[0].ceiling[-1] / axes),
        "AUROC": auroc(np.concatenate([ours, others]), np.arange(len(ours) + len(others)) < len(ours)),
        "hits, trained": float(found.hits.sum() / len(samples)),
        "hits, held out": float(found.holdout_hits.sum() / len(samples)),
    }
