"""The paper's ablation on a planted case: axes, steps, and the radius of the finite difference."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import mannwhitneyu

from jobs.charts import Line, curves
from jobs.reproduce_paper.planted import planted
from jobs.reproduce_paper.published import Growth, published_growth
from jobs.sections import Chart, Row, Section, Table, Workshop, table
from volgrowth.analysis.ranking import auroc, tpr_at_fpr


@dataclass(frozen=True)
class Subset:
    """Families, and held-out images where calibration is affordable."""

    families: np.ndarray
    holdout: bool


def subset(shop: Workshop, nfe: int) -> Subset:
    """All images where an image costs little; else as many as the budget allows, half of them memorized."""
    case, scale = planted(shop), shop.scale
    if nfe <= scale.whole_case:
        return Subset(np.arange(len(case.images)), True)
    order = np.random.default_rng(0).permutation(len(case.images))
    count = max(scale.fewest, scale.budget // nfe)
    positive = order[case.memorized[order]][: count // 2]
    negative = order[~case.memorized[order]][: count - len(positive)]
    return Subset(np.concatenate([positive, negative]), False)


def ablation_row(shop: Workshop, score: np.ndarray, chosen: Subset, setting: Row) -> Row:
    """What a setting detects."""
    case = planted(shop)
    some, positive = score[: len(chosen.families)], case.memorized[chosen.families]
    row = {
        **setting,
        "images": len(positive),
        "memorized": int(positive.sum()),
        "memorized, mean": some[positive].mean(),
        "others, mean": some[~positive].mean(),
        "p, Mann-Whitney": float(mannwhitneyu(some[positive], some[~positive], alternative="greater").pvalue),
        "AUROC": auroc(some, positive),
    }
    if chosen.holdout:
        adjusted = some - case.judged.calibrate(some, score[len(chosen.families) :]).expected
        row["TPR at 1% FPR"] = tpr_at_fpr(some, positive)
        row["AUROC, calibrated"] = auroc(adjusted, positive)
        row["TPR, calibrated"] = tpr_at_fpr(adjusted, positive)
    return row


def ablation_measure(shop: Workshop, chosen: Subset, axes: int, steps: int, radius: float = 0.05) -> Growth:
    """Growth of a subset, held-out images last."""
    case = planted(shop)
    images = case.images[chosen.families]
    images = np.concatenate([images, case.holdout]) if chosen.holdout else images
    return published_growth(case.denoiser, images, axes, steps, radius)


def ablation_grid(shop: Workshop) -> list[Row]:
    """Axes by steps. One run of many steps gives all shorter ones of the same images, as the authors' code does."""
    rows = []
    for asked in shop.scale.ablation_axes:
        axes = min(asked, planted(shop).axes)
        sizes = {steps: subset(shop, (1 + axes) * steps) for steps in shop.scale.ablation_steps}
        for holdout in (True, False):
            group = [steps for steps in sizes if sizes[steps].holdout == holdout]
            # the longest run of a group that measures the same images serves the shorter ones
            run: Growth | None = None
            for steps in sorted(group, reverse=True):
                if run is None or not holdout:
                    shop.say(f"{axes} axes, {steps} steps, {len(sizes[steps].families)} images")
                    run = ablation_measure(shop, sizes[steps], axes, steps)
                setting = {"axes": axes, "steps": steps, "evaluations": (1 + axes) * steps}
                rows.append(ablation_row(shop, run.volume[:, steps - 1], sizes[steps], setting))
    return sorted(rows, key=lambda row: (row["axes"], row["steps"]))


def ablation_radius(shop: Workshop) -> list[Row]:
    """Radii for one axis and one step, with the distance from the exact derivative."""
    case, chosen = planted(shop), subset(shop, 2)
    images = np.concatenate([case.images, case.holdout])
    exact = published_growth(case.denoiser, images, 1, 1, derivative="jvp").volume[:, 0]
    rows = [ablation_row(shop, exact, chosen, {"radius": None, "error": 0.0})]
    for radius in shop.scale.ablation_radii:
        growth = ablation_measure(shop, chosen, 1, 1, radius).volume[:, 0]
        error = float(np.median(np.abs(growth - exact)))
        rows.append(ablation_row(shop, growth, chosen, {"radius": radius, "error": error}))
    return rows


def ablation(shop: Workshop) -> Section:
    """Axes, steps, radius."""
    case = planted(shop)
    grid, radii = ablation_grid(shop), ablation_radius(shop)
    whole = [row for row in grid if "TPR, calibrated" in row]
    first, best = grid[0], max(whole, key=lambda row: row["TPR, calibrated"])
    spread = [row["TPR, calibrated"] for row in radii]
    few = sorted({row["images"] for row in grid if "TPR, calibrated" not in row})
    axes = sorted({row["axes"] for row in grid})
    differences = [
        "Nats grow with axes and steps by construction, so means and gaps of settings cannot be compared; how well "
        "a setting ranks images can.",
    ]
    if max(shop.scale.ablation_axes) > case.axes:
        differences.append(f"These images have {case.axes} dimensions: more axes than {axes[-1]} there cannot be.")
    return Section(
        name="ablation",
        title="Axes, steps, radius",
        setting=f"{case.setting()} Steps are the first of the published 1000. "
        f"Settings of up to {shop.scale.whole_case} evaluations an image are measured on every image and calibrated; "
        f"costlier ones on {', '.join(map(str, few)) or 'no'} images, half of them memorized as far as there are as "
        "many, where neither a rate at 1% nor a calibration can be had.",
        tables=ablation_tables(grid, radii),
        charts=[ablation_chart(shop, grid)],
        findings=[
            f"One axis and one step: AUROC {first['AUROC']:.3f}, TPR {first['TPR at 1% FPR']:.0%} raw and "
            f"{first['TPR, calibrated']:.0%} calibrated, for 2 evaluations. The best affordable setting on all images, "
            f"{best['axes']} axes and {best['steps']} steps: {best['TPR, calibrated']:.0%} for {best['evaluations']}.",
            f"Radius: calibrated TPR between {min(spread):.0%} and {max(spread):.0%}; the difference is nearest to the "
            f"derivative at {min(radii[1:], key=lambda row: row['error'])['radius']:g}.",
        ],
        differences=differences,
    )


def ablation_tables(grid: list[Row], radii: list[Row]) -> list[Table]:
    """Both grids."""
    about = (
        "Growth of one axis over one step by radius of the difference; no radius is the exact derivative, error the "
        "median distance from it in nats."
    )
    return [
        table("axes-steps", "Growth by axes and steps, radius 0.05; means in nats.", grid),
        table("radius", about, radii),
    ]


def ablation_chart(shop: Workshop, grid: Sequence[Row]) -> Chart:
    """AUROC over steps, a line for each number of axes."""
    roles, steps = ("muted", "cool", "accent", "ink"), list(shop.scale.ablation_steps)
    axes = sorted({row["axes"] for row in grid})
    lines = []
    for number, role in zip(axes, roles, strict=False):
        values = [row["AUROC"] for row in grid if row["axes"] == number]
        lines.append(Line(f"{number} axes" if number != 1 else "1 axis", np.array(values), role=role))
    return Chart(
        "axes-steps",
        "AUROC of raw growth. Points to the right stand on fewer images: see the table.",
        "AUROC against the number of steps for each number of axes.",
        lambda palette: curves(palette, steps, [("AUROC, raw", lines)], "steps"),
    )
