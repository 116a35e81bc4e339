"""The paper's experiments on a planted case: a training set whose memorized images are known by sampling.

memorized    the paper's test of memorized against unmemorized images, beside what the same score detects
ablation     axes, steps and radius of the finite difference
trajectory   growth along the way from image to noise
scores       other scores on the same case; the bench (`jobs/benchmark.py detection`) has all cases and intervals
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import mannwhitneyu, ttest_ind

from volgrowth.analysis.conformal import FDR, q_values
from volgrowth.analysis.detection import auroc, tpr_at_fpr
from volgrowth.analysis.verification import Reproduced
from volgrowth.lab.cases import to_tensor
from volgrowth.lab.paper_figures import Line, curves, histograms, trajectories
from volgrowth.lab.paper_growth import Growth, Judged, published_growth
from volgrowth.lab.paper_sections import Chart, Section, Workshop, table
from volgrowth.lab.scores import SCORES, evaluate
from volgrowth.lab.suite import Trained, trained
from volgrowth.lab.truth import measure_truth
from volgrowth.models import load_model
from volgrowth.numerics import Denoiser

TRAJECTORY_AXES = 10


@dataclass(frozen=True)
class Planted:
    """A trained case with its truth. Arrays are over families, the distinct images of the training set."""

    trained: Trained
    denoiser: Denoiser
    judged: Judged
    truth: Reproduced

    @property
    def memorized(self) -> np.ndarray:
        return self.truth.images

    @property
    def plain(self) -> np.ndarray:
        return np.char.startswith(self.trained.case.names.astype(str), "plain")

    @property
    def images(self) -> np.ndarray:
        """(families, C, H, W) uint8."""
        return self.trained.case.train[self.trained.case.first]

    @property
    def holdout(self) -> np.ndarray:
        return self.trained.case.holdout

    @property
    def axes(self) -> int:
        """The most axes there can be: the dimension of an image."""
        return int(np.prod(self.images.shape[1:]))

    def setting(self) -> str:
        """What the case is, in a sentence."""
        copies, case = self.trained.case.copies, self.trained.case
        planted = ", ".join(f"{(copies == n).sum()} with {n} copies" for n in np.unique(copies)[::-1] if n > 1)
        return (
            f"Case {self.trained.setup.name}, seed {self.trained.seed}: {len(case.train)} rows of "
            f"{len(copies)} distinct images of shape {'x'.join(map(str, self.images.shape[1:]))}, {planted}, "
            f"{self.plain.sum()} plain ones (flat, gradient, faint); {len(case.holdout)} held out. "
            f"{self.memorized.sum()} images are reproduced in {len(self.trained.samples)} samples by DDIM: "
            f"{self.truth.rule}."
        )


@lru_cache(maxsize=1)
def planted(shop: Workshop) -> Planted:
    """The case, trained and sampled once for all experiments."""
    case = trained(shop.setup, shop.seed, shop.data, shop.models, shop.say)
    return Planted(case, load_model(str(case.model)), Judged.of(case.case), measure_truth(case))


@lru_cache(maxsize=len(SCORES))
def scored(shop: Workshop, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A score of `lab.scores`: (families,) and (held out,)."""
    case, score = planted(shop), next(score for score in SCORES if score.name == name)
    shop.say(f"scoring with {name}")
    both = to_tensor(np.concatenate([case.images, case.holdout]))
    values = evaluate(score, case.denoiser, both, seed=0)
    return values[: len(case.images)], values[len(case.images) :]


def flags(shop: Workshop) -> np.ndarray:
    """(families,) what an audit flags: preset standard, calibrated, at the package's false-discovery rate."""
    judged = planted(shop).judged
    calibration = judged.calibrate(*scored(shop, "standard"))
    assert calibration.p_value is not None
    p_value = np.where(calibration.outside, 1.0, calibration.p_value)
    return q_values(p_value, judged.audited.content) <= FDR


@lru_cache(maxsize=len(SCORES))
def excess(shop: Workshop, name: str) -> np.ndarray:
    """(families,) a score of `lab.scores` less what is expected of images so complex."""
    score, holdout_score = scored(shop, name)
    return score - planted(shop).judged.calibrate(score, holdout_score).expected


def test_row(name: str, form: str, score: np.ndarray, memorized: np.ndarray, plain: np.ndarray) -> dict[str, object]:
    """The paper's test and what it leaves out. High scores are suspicious; tests are one-sided."""
    ours, others = score[memorized], score[~memorized]
    return {
        "score": name,
        "form": form,
        "memorized, mean": ours.mean(),
        "others, mean": others.mean(),
        "plain, mean": score[plain & ~memorized].mean() if (plain & ~memorized).any() else None,
        "p, Welch": float(ttest_ind(ours, others, equal_var=False, alternative="greater").pvalue),
        "p, Mann-Whitney": float(mannwhitneyu(ours, others, alternative="greater").pvalue),
        "AUROC": auroc(score, memorized),
        "TPR at 1% FPR": tpr_at_fpr(score, memorized),
        "AUROC, no plain": auroc(score[~plain | memorized], memorized[~plain | memorized]),
    }


def score_rows(shop: Workshop, name: str, label: str) -> list[dict[str, object]]:
    """A score, raw and calibrated."""
    case = planted(shop)
    return [
        test_row(label, form, values, case.memorized, case.plain)
        for form, values in (("raw", scored(shop, name)[0]), ("calibrated", excess(shop, name)))
    ]


def memorized(shop: Workshop) -> Section:
    """Memorized against unmemorized images, as the paper tests them and as a detector has to tell them apart."""
    case = planted(shop)
    rows = [
        *score_rows(shop, "vgr", "growth, 1 axis, 1 step (paper)"),
        *score_rows(shop, "vgr_10x10", "growth, 10 axes, 10 steps"),
        *score_rows(shop, "standard", "trace at level 0.18 (preset standard)"),
    ]
    raw, calibrated, best = rows[0], rows[1], rows[-1]
    panels = []
    for label, score in (
        ("growth, 1 axis, 1 step, nats", "vgr"),
        ("trace at level 0.18, collapsed directions", "standard"),
    ):
        panels += [(label, scored(shop, score)[0]), (f"{label.split(',')[0]}, calibrated", excess(shop, score))]
    groups = {
        "others": ~case.memorized & ~case.plain,
        "plain": case.plain & ~case.memorized,
        "memorized": case.memorized,
    }
    chart = Chart(
        "scores",
        "Distributions of equal area. Plain images lie where memorized ones do until complexity is taken out.",
        "Histograms of raw and calibrated growth of memorized, plain and other images.",
        lambda palette: histograms(
            palette, panels, groups, {"others": "muted", "plain": "cool", "memorized": "accent"}
        ),
    )
    return Section(
        name="memorized",
        title="Memorized against unmemorized",
        setting=case.setting() + " The paper's axes and radius (.05), true float32; calibration on held-out images.",
        tables=[table("test", "One-sided tests that memorized images score higher, and detection.", rows)],
        charts=[chart],
        findings=[
            f"For the published score the test gives p = {raw['p, Welch']:.0e} (Welch) and "
            f"{raw['p, Mann-Whitney']:.0e} (Mann-Whitney). It finds {raw['TPR at 1% FPR']:.0%} of the memorized images "
            f"at 1% false positives. Calibrated on complexity it finds {calibrated['TPR at 1% FPR']:.0%}.",
            f"The trace at a middle noise level, calibrated, finds {best['TPR at 1% FPR']:.0%} "
            f"(AUROC {best['AUROC']:.3f}).",
        ],
        differences=[
            "The paper reports p-values. They shrink with the number of images and say nothing of the tail, where a "
            "detector works: the columns to their right are what a curator needs.",
            "Which test the paper used is not recorded with this code: Welch's t on the log growth and Mann-Whitney's "
            "ranks are both given, one-sided.",
            "This set has plain images by design, which the paper names as its open question. Without them the raw "
            "scores do as well as the last column says.",
        ],
    )


def scores(shop: Workshop) -> Section:
    """Other scores on this one case."""
    rows = []
    for score in SCORES:
        if score.name in ("vgr", "standard", "loss", "flipd", "sharpness", "noise_norm", "pia", "secmi"):
            rows += [{"evaluations": score.nfe, **row} for row in score_rows(shop, score.name, score.source)]
    keep = ("score", "form", "evaluations", "AUROC", "TPR at 1% FPR", "AUROC, no plain")
    rows = [{column: row[column] for column in keep} for row in rows]
    best = max(rows, key=lambda row: (row["TPR at 1% FPR"], row["AUROC"]))
    return Section(
        name="scores",
        title="Other scores on the same case",
        setting=planted(shop).setting(),
        tables=[
            table("scores", "One case, one seed. jobs/benchmark.py detection has all cases, seeds, intervals.", rows)
        ],
        findings=[f"Highest here: {best['score']}, {best['form']}, with {best['TPR at 1% FPR']:.0%} at 1% FPR."],
        differences=["The paper leaves the comparison with other scores open."],
    )


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


def ablation_row(shop: Workshop, score: np.ndarray, chosen: Subset, setting: dict[str, object]) -> dict[str, object]:
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


def ablation_grid(shop: Workshop) -> list[dict[str, object]]:
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
    return sorted(rows, key=lambda row: (row["axes"], row["steps"]))  # type: ignore[operator]


def ablation_radius(shop: Workshop) -> list[dict[str, object]]:
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
    first, best = grid[0], max(whole, key=lambda row: row["TPR, calibrated"])  # type: ignore[arg-type, return-value]
    spread = [row["TPR, calibrated"] for row in radii]
    few = sorted({row["images"] for row in grid if "TPR, calibrated" not in row})  # type: ignore[type-var]
    axes = sorted({row["axes"] for row in grid})  # type: ignore[type-var]
    differences = [
        "Nats grow with axes and steps by construction, so means and gaps of settings cannot be compared; how well "
        "a setting ranks images can.",
    ]
    if max(shop.scale.ablation_axes) > case.axes:
        differences.append(f"These images have {case.axes} dimensions: more axes than {axes[-1]} there cannot be.")
    return Section(
        name="ablation",
        title="Axes, steps, radius",
        setting=case.setting() + " Steps are the first of the published 1000. "
        f"Settings of up to {shop.scale.whole_case} evaluations an image are measured on every image and calibrated; "
        f"costlier ones on {', '.join(map(str, few)) or 'no'} images, half of them memorized as far as there are as "
        "many, where neither a rate at 1% nor a calibration can be had.",
        tables=[
            table("axes-steps", "Growth by axes and steps, radius 0.05; means in nats.", grid),
            table(
                "radius",
                "Growth of one axis over one step by radius of the difference; no radius is the exact "
                "derivative, and error the median distance from it in nats.",
                radii,
            ),
        ],
        charts=[ablation_chart(shop, grid)],
        findings=[
            f"One axis and one step: AUROC {first['AUROC']:.3f}, TPR {first['TPR at 1% FPR']:.0%} raw and "
            f"{first['TPR, calibrated']:.0%} calibrated, for 2 evaluations. The best affordable setting on all images, "
            f"{best['axes']} axes and {best['steps']} steps: {best['TPR, calibrated']:.0%} for {best['evaluations']}.",
            f"Radius: calibrated TPR between {min(spread):.0%} and {max(spread):.0%}; the difference is nearest to the "
            f"derivative at {min(radii[1:], key=lambda row: row['error'])['radius']:g}.",  # type: ignore[arg-type, return-value]
        ],
        differences=differences,
    )


def ablation_chart(shop: Workshop, grid: Sequence[dict[str, object]]) -> Chart:
    """AUROC over steps, a line for each number of axes."""
    roles, steps = ("muted", "cool", "accent", "ink"), list(shop.scale.ablation_steps)
    axes = sorted({row["axes"] for row in grid})  # type: ignore[type-var]
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


def trajectory(shop: Workshop) -> Section:
    """Growth along the way from image to noise, by group."""
    case, count = planted(shop), shop.scale.trajectory_images
    stranger = ~np.char.startswith(case.trained.case.holdout_names.astype(str), "plain")
    groups = {
        "memorized": (case.images[case.memorized], "accent", False),
        "not memorized": (case.images[~case.memorized & ~case.plain], "muted", False),
        "held out": (case.holdout[stranger], "cool", True),
        "plain": (case.images[case.plain & ~case.memorized], "cool", False),
    }
    axes, steps = min(TRAJECTORY_AXES, case.axes), shop.scale.steps
    whole, below, rows, ceiling = [], [], [], np.zeros(steps)
    for name, (images, role, dashed) in groups.items():
        shop.say(f"following {min(count, len(images))} {name} images over {steps} steps")
        growth = published_growth(case.denoiser, images[:count], axes, steps)
        volume, ceiling = growth.volume / axes, growth.ceiling / axes
        whole.append(Line(name, volume.mean(0), volume.std(0), role, dashed))
        below.append(Line(name, (ceiling - volume).mean(0), None, role, dashed))
        marks = {"above ceiling": int(growth.above_ceiling.sum()), "sign flips": int(growth.sign_flip.sum())}
        reached = {f"at step {k}": volume[:, k - 1].mean() for k in (1, 10, 100, steps) if k <= steps}
        rows.append({"group": name, "images": len(volume), **reached, "sd at the end": volume[:, -1].std(), **marks})
    rows.append({"group": "point mass", **{f"at step {k}": ceiling[k - 1] for k in (1, 10, 100, steps) if k <= steps}})
    whole.append(Line("point mass", ceiling, None, "ink", True))
    gaps = [(k, whole[0].mean[k - 1] - whole[1].mean[k - 1]) for k in (1, 10, 100, steps) if k <= steps]
    return Section(
        name="trajectory",
        title="Growth along the trajectory",
        setting=f"{case.setting()} The first {count} images of each group, {axes} axes, {steps} steps, radius .05.",
        tables=[table("trajectory", "Mean log volume per axis, nats, x-coordinates, after so many steps.", rows)],
        charts=[
            Chart(
                "trajectory",
                "Left: mean log volume per axis, bands of one standard deviation. Right: how far below a point mass.",
                "Log volume of four groups of images over the steps of the probability flow.",
                lambda palette: trajectories(palette, whole, below),
            )
        ],
        findings=[
            "Memorized less not memorized, nats per axis: "
            + ", ".join(f"{gap:+.3f} after {k}" for k, gap in gaps)
            + ".",
            f"Plain images end at {whole[3].mean[-1]:.2f} and memorized ones at {whole[0].mean[-1]:.2f}: raw growth "
            "cannot tell them apart at any step where plain ones are as high.",
        ],
        differences=[
            "Held-out and plain images are added to the paper's groups, and the point mass, above which no exact flow "
            "can be."
        ],
    )
