"""The paper's first experiment: images that a network was trained on to death, against held-out ones.

overfit    volume growth along the whole flow, trained against held out
degrees    the same networks after fewer steps of training: growth and sample hits as memorization sets in
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import zoom
from scipy.stats import mannwhitneyu

from jobs.benchmark.detection.suite import Setup
from jobs.charts import Line, curves, dots
from jobs.reproduce_paper.published import Growth, published_growth
from jobs.reproduce_paper.retraining import mean_loss
from jobs.sections import Chart, Row, Section, Workshop, table
from volgrowth.analysis.ranking import auroc
from volgrowth.audit.sampling.drawing import draw_samples
from volgrowth.demo.cases import digit_images
from volgrowth.demo.training import Recipe, train_model
from volgrowth.demo.truth import find_reproduced
from volgrowth.models import load_model
from volgrowth.numerics import Denoiser

BATCH = 32

# (trained, held out), nats for 100 axes and 1000 steps
PAPER = (594.0, 373.0)
EARLIER = (403.0, 148.0)

BEYOND = (
    " Around an image that a network has learned by heart its denoiser does not only forget the input, it answers with "
    "the opposite (negative posterior variance), as no exact one can: network error, and a sign of overfitting."
)

# of the shorter way to see which network memorizes: axes, steps
SHORT = (10, 100)


@dataclass(frozen=True)
class Sides:
    """Trained and held-out images, (n, C, H, W) uint8 each."""

    trained: np.ndarray
    held_out: np.ndarray


@lru_cache(maxsize=1)
def sides(shop: Workshop) -> Sides:
    """Images for the overfit experiment, dealt at random from the seed."""
    if shop.images is None:
        images = enlarged(digit_images())
    else:
        images = Setup("overfit", shop.images.name, 0, (), Recipe()).images(shop.images.parent)
    order = np.random.default_rng(shop.seed).permutation(len(images))
    count = shop.scale.images
    return Sides(images[order[:count]], images[order[count : 2 * count]])


def enlarged(images: np.ndarray, factor: float = 1.5) -> np.ndarray:
    """Linear interpolation, (n, C, H, W) uint8: 8x8 digits have 64 dimensions, and the paper follows 100 axes."""
    return np.clip(np.round(zoom(images.astype(float), (1, 1, factor, factor), order=1)), 0, 255).astype(np.uint8)


def network(shop: Workshop, steps: int) -> Denoiser:
    """A network trained on the trained side for so many steps, or the one that is there already."""
    recipe = Recipe(shop.scale.channels, steps, BATCH)
    name = f"overfit-{shop.images.stem if shop.images else 'digits'}-{shop.scale.images}-{shop.seed}-"
    folder = shop.models / (name + "-".join(map(str, (*recipe.channels, steps))))
    if not (folder / "model_index.json").exists():
        shop.say(f"training on {shop.scale.images} images for {steps} steps")
        train_model(sides(shop).trained, folder, shop.seed, recipe)
    return load_model(str(folder))


def overfit(shop: Workshop) -> Section:
    """N axes, 1000 steps, Euler, differences of radius .05."""
    scale, pair = shop.scale, sides(shop)
    axes = min(scale.axes, int(np.prod(pair.trained.shape[1:])))
    denoiser = network(shop, scale.overfit_steps[-1])
    measured = {}
    for name, images in (("trained", pair.trained), ("held out", pair.held_out)):
        shop.say(f"following {len(images)} {name} images, {axes} axes, {scale.steps} steps")
        measured[name] = published_growth(denoiser, images, axes, scale.steps)
    ceiling = float(measured["trained"].ceiling[-1])
    rows = [overfit_row(name, growth) for name, growth in measured.items()]
    ends = {name: growth.volume[:, -1] for name, growth in measured.items()}
    shape = "x".join(map(str, pair.trained.shape[1:]))
    return Section(
        name="overfit",
        title="Overfit: trained against held out",
        setting=f"{scale.images} images of shape {shape}, a UNet with channels {scale.channels} trained on them for "
        f"{scale.overfit_steps[-1]} steps of {BATCH}, against {scale.images} others. {axes} axes, {scale.steps} steps "
        f"of the published 1000, Euler, differences of radius 0.05, float32: {measured['trained'].nfe:,} evaluations "
        "an image.",
        tables=[
            table(
                "overfit",
                f"Log volume of {axes} axes, nats, x-coordinates.",
                [*rows, *published_rows(axes, scale.steps)],
            ),
            table("images", "Every image.", image_rows(measured)),
        ],
        charts=[
            Chart(
                "overfit",
                "Each dot is an image. No exact flow can be above the dashed line.",
                f"Log volume of trained images, mean {ends['trained'].mean():.0f}, and held-out ones, "
                f"mean {ends['held out'].mean():.0f}.",
                lambda palette: dots(palette, ends, "log volume, nats", ceiling, f"point mass {ceiling:.0f}"),
            )
        ],
        findings=overfit_findings(ends, ceiling, axes, measured["trained"]),
        differences=overfit_differences(ends, shape),
    )


def overfit_row(name: str, growth: Growth) -> Row:
    """One side's numbers."""
    volume, edges = growth.volume[:, -1], growth.edges[:, -1]
    return {
        "images": name,
        "count": len(volume),
        "mean": volume.mean(),
        "sd": volume.std(ddof=1),
        "lowest": volume.min(),
        "highest": volume.max(),
        "edges, mean": edges.mean(),
        "exact bound": float(growth.ceiling[-1]),
        "above it": int(growth.above_ceiling.sum()),
        "sign flips": int(growth.sign_flip.sum()),
    }


def published_rows(axes: int, steps: int) -> list[Row]:
    """What others measured, where it can stand beside it."""
    if (axes, steps) != (100, 1000):
        return []
    rows = []
    for source, values, count in (("paper, 32x32", PAPER, 27), ("FINDINGS, 12x12", EARLIER, 64)):
        for name, value in zip(("trained", "held out"), values, strict=True):
            rows.append({"images": f"{name}: {source}", "count": count if name == "trained" else None, "mean": value})
    return rows


def image_rows(measured: dict[str, Growth]) -> list[Row]:
    """Every image, by its place in its set."""
    return [
        {"images": name, "place": place, "log volume": growth.volume[place, -1], "log edges": growth.edges[place, -1]}
        for name, growth in measured.items()
        for place in range(len(growth.volume))
    ]


def overfit_findings(ends: dict[str, np.ndarray], ceiling: float, axes: int, growth: Growth) -> list[str]:
    """What the numbers say."""
    ours, others = ends["trained"], ends["held out"]
    p_value = mannwhitneyu(ours, others, alternative="greater").pvalue
    gap = float(np.abs(growth.edges[:, -1] - growth.volume[:, -1]).max())
    return [
        f"e^{ours.mean():.0f} trained against e^{others.mean():.0f} held out, "
        f"{(ours.mean() - others.mean()) / axes:.2f} nats per axis apart. "
        f"The lowest trained image is at {ours.min():.0f}, the highest held-out one at "
        f"{others.max():.0f} (Mann-Whitney p = {p_value:.0e}).",
        f"{(ours > ceiling).sum()} of {len(ours)} trained images and {(others > ceiling).sum()} of {len(others)} "
        f"held-out ones lie above {ceiling:.0f}, where a point mass is with the same steps."
        + (BEYOND if (ours > ceiling).any() else ""),
        f"Edges before orthogonalisation, which the authors' code sums, exceed the volume by up to {gap:.1f} nats.",
    ]


def overfit_differences(ends: dict[str, np.ndarray], shape: str) -> list[str]:
    """Why this is not 594 against 373."""
    return [
        f"The paper has e^{PAPER[0]:.0f} against e^{PAPER[1]:.0f} at 32x32 in colour, with a far larger network; here "
        f"e^{ends['trained'].mean():.0f} against e^{ends['held out'].mean():.0f} at {shape}. Absolute values depend on "
        "data, network and training; the order does not.",
        "The bound for 100 axes and these 1000 steps is 463 nats whatever the images: the paper's trained value lies "
        "above it as well, so it measures network error beside collapse and is no volume of an exact flow.",
        "Where held-out images lie depends on the share of directions that the data leave empty, which is likely to be "
        "larger for 100 axes among the 3072 dimensions of the paper's images.",
    ]


def degrees(shop: Workshop) -> Section:
    """Networks trained for more and more steps on the same images."""
    rows = [degree_row(shop, steps) for steps in shop.scale.overfit_steps]
    first, last = rows[0], rows[-1]
    return Section(
        name="degrees",
        title="Degrees of overfitting",
        setting=f"The {shop.scale.images} images of the overfit experiment; each number of steps is a training of its "
        f"own with its own learning-rate cycle, from the same seed. Growth of {SHORT[0]} axes over the first "
        f"{SHORT[1]} steps; {shop.scale.overfit_samples} samples of each by DDIM.",
        tables=[table("degrees", "Log volume in nats per axis; hits as a share of samples.", rows)],
        charts=[degree_chart(rows)],
        findings=[
            f"From {first['training steps']} to {last['training steps']} steps of training, trained images grow from "
            f"{first['trained']:.2f} to {last['trained']:.2f} nats per axis and held-out ones from "
            f"{first['held out']:.2f} to {last['held out']:.2f}; samples that hit a trained image go from "
            f"{first['hits, trained']:.0%} to {last['hits, trained']:.0%}, held-out ones from "
            f"{first['hits, held out']:.0%} to {last['hits, held out']:.0%}.",
            *onset(rows),
        ],
        differences=["The paper compares a trained and a held-out set at one degree and leaves this open."],
    )


def onset(rows: list[Row]) -> list[str]:
    """Which of growth and samples shows overfitting first."""
    told = next((row["training steps"] for row in rows if row["AUROC"] >= 0.95), None)
    copied = next((row["training steps"] for row in rows if row["hits, trained"] >= 0.1), None)
    if told is None or copied is None:
        return []
    order = "before" if told < copied else "after" if told > copied else "at the same degree as"
    return [
        f"Growth tells trained from held-out images at AUROC .95 from {told} steps on, {order} a tenth of the samples "
        f"are copies ({copied} steps)."
    ]


def degree_row(shop: Workshop, steps: int) -> Row:
    """One network."""
    pair, denoiser = sides(shop), network(shop, steps)
    shop.say(f"measuring the network of {steps} steps")
    axes = min(SHORT[0], int(np.prod(pair.trained.shape[1:])))
    length = min(SHORT[1], shop.scale.steps)
    growths = [published_growth(denoiser, images, axes, length) for images in (pair.trained, pair.held_out)]
    ours, others = (growth.volume[:, -1] / axes for growth in growths)
    samples = draw_samples(denoiser, range(shop.scale.overfit_samples), seed=0)
    found = find_reproduced(samples, pair.trained, pair.held_out)
    return {
        "training steps": steps,
        "loss, trained": mean_loss(denoiser, pair.trained),
        "loss, held out": mean_loss(denoiser, pair.held_out),
        "trained": float(ours.mean()),
        "held out": float(others.mean()),
        "bound": float(growths[0].ceiling[-1] / axes),
        "AUROC": auroc(np.concatenate([ours, others]), np.arange(len(ours) + len(others)) < len(ours)),
        "hits, trained": float(found.hits.sum() / len(samples)),
        "hits, held out": float(found.holdout_hits.sum() / len(samples)),
    }


def degree_chart(rows: list[Row]) -> Chart:
    """Growth and hits over training."""

    def line(column: str, name: str, role: str, dashed: bool = False) -> Line:
        return Line(name, np.array([row[column] for row in rows]), None, role, dashed)

    growth = [
        line("trained", "trained", "accent"),
        line("held out", "held out", "cool"),
        line("bound", "point mass", "muted", dashed=True),
    ]
    hits = [line("hits, trained", "trained", "accent"), line("hits, held out", "held out", "cool")]
    panels = [("log volume, nats per axis", growth), ("share of samples that hit", hits)]
    steps = [row["training steps"] for row in rows]
    return Chart(
        "degrees",
        "Left: mean growth. Right: samples that are copies.",
        "Growth and sample hits of trained and held-out images over steps of training.",
        lambda palette: curves(palette, steps, panels, "steps of training"),
    )
