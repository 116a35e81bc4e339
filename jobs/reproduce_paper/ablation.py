"""The paper's ablation on a planted case: axes, steps, and the radius of the finite difference."""

from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu

from jobs.charts import Line, curves
from jobs.experiments import Outcome, say
from jobs.reproduce_paper.planted import planted_case
from jobs.reproduce_paper.published import published_growth
from jobs.reproduce_paper.workshop import Workshop
from volgrowth.analysis.ranking import auroc, tpr_at_fpr
from volgrowth.report.charts.figures import ACCENT, COOL, INK, MUTED

Row = dict[str, Any]


def ablation(shop: Workshop) -> Outcome:
    """Detection by axes and steps, and by the radius of the difference."""
    grid, radii = _grid(shop), _radii(shop)
    whole = [row for row in grid if "TPR, calibrated" in row]
    first, best = grid[0], max(whole, key=lambda row: row["TPR, calibrated"])
    spread = [row["TPR, calibrated"] for row in radii]
    few = sorted({row["images"] for row in grid if "TPR, calibrated" not in row})
    lines = [
        Line(f"{axes} {'axis' if axes == 1 else 'axes'}", [row["AUROC"] for row in grid if row["axes"] == axes], colour)
        for axes, colour in zip(sorted({row["axes"] for row in grid}), (MUTED, COOL, ACCENT, INK), strict=False)
    ]
    return Outcome(
        sentences=[
            f"One axis and one step: AUROC {first['AUROC']:.3f}, TPR {first['TPR at 1% FPR']:.0%} raw and "
            f"{first['TPR, calibrated']:.0%} calibrated, for 2 evaluations. The best affordable setting on all images, "
            f"{best['axes']} axes and {best['steps']} steps: {best['TPR, calibrated']:.0%} for {best['evaluations']}.",
            f"Radius: calibrated TPR between {min(spread):.0%} and {max(spread):.0%}; the difference is nearest to the "
            f"derivative at {min(radii[1:], key=lambda row: row['error'])['radius']:g}.",
        ],
        tables={"axes-steps": grid, "radius": radii},
        settings={
            **planted_case(shop).settings(),
            "evaluations an image up to which every image is measured": shop.sizes.whole_case,
            "images of costlier settings": ", ".join(map(str, few)) or "none",
        },
        figures={"axes-steps": curves(shop.sizes.ablation_steps, {"AUROC, raw": lines}, "steps")},
    )


def _grid(shop: Workshop) -> list[Row]:
    """Return a row for every number of axes and of steps.

    The longest run on every image gives all shorter ones, as the authors' code does; costlier settings each have
    images of their own.
    """
    case, sizes, rows = planted_case(shop), shop.sizes, []
    for axes in dict.fromkeys(min(asked, case.axes) for asked in sizes.ablation_axes):
        volume, shared = np.empty((0, 0)), False
        for steps in sorted(sizes.ablation_steps, reverse=True):
            evaluations = (1 + axes) * steps
            everywhere = evaluations <= sizes.whole_case
            families = np.arange(len(case.distinct)) if everywhere else _affordable(shop, evaluations)
            if not shared:
                say(f"{axes} axes, {steps} steps, {len(families)} images")
                images = case.pixels if everywhere else case.distinct[families]
                volume, shared = published_growth(case.denoiser, images, axes, steps).volume, everywhere
            setting = {"axes": axes, "steps": steps, "evaluations": evaluations}
            rows.append(_ablation_row(shop, volume[:, steps - 1], families, everywhere, setting))
    return sorted(rows, key=lambda row: (row["axes"], row["steps"]))


def _affordable(shop: Workshop, evaluations: int) -> np.ndarray:
    """Return as many families as the budget allows, half of them memorized if there are as many."""
    case, sizes = planted_case(shop), shop.sizes
    order = np.random.default_rng(0).permutation(len(case.distinct))
    count = max(sizes.fewest, sizes.budget // evaluations)
    positive = order[case.memorized[order]][: count // 2]
    return np.concatenate([positive, order[~case.memorized[order]][: count - len(positive)]])


def _radii(shop: Workshop) -> list[Row]:
    """Return a row for every radius with one axis and one step, and its distance from the exact derivative."""
    case = planted_case(shop)
    families, pixels = np.arange(len(case.distinct)), case.pixels
    exact = published_growth(case.denoiser, pixels, 1, 1, derivative="jvp").volume[:, 0]
    rows = [_ablation_row(shop, exact, families, True, {"radius": None, "error": 0.0})]
    for radius in shop.sizes.ablation_radii:
        growth = published_growth(case.denoiser, pixels, 1, 1, radius).volume[:, 0]
        error = float(np.median(np.abs(growth - exact)))
        rows.append(_ablation_row(shop, growth, families, True, {"radius": radius, "error": error}))
    return rows


def _ablation_row(shop: Workshop, score: np.ndarray, families: np.ndarray, everywhere: bool, setting: Row) -> Row:
    """Return how well a setting detects.

    Args:
        score: of the families, and if they are all of them (`everywhere`) of the held-out images behind them.
    """
    case = planted_case(shop)
    some, positive = score[: len(families)], case.memorized[families]
    row = {
        **setting,
        "images": len(positive),
        "memorized": int(positive.sum()),
        "memorized, mean": some[positive].mean(),
        "others, mean": some[~positive].mean(),
        "p, Mann-Whitney": float(mannwhitneyu(some[positive], some[~positive], alternative="greater").pvalue),
        "AUROC": auroc(some, positive),
    }
    if everywhere:
        adjusted = some - case.calibrate(score).first_expected
        row["TPR at 1% FPR"] = tpr_at_fpr(some, positive)
        row["AUROC, calibrated"] = auroc(adjusted, positive)
        row["TPR, calibrated"] = tpr_at_fpr(adjusted, positive)
    return row
