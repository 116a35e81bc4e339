"""The paper's experiments on a planted case: a training set whose memorized images are known by sampling.

memorized    the paper's test of memorized against unmemorized images, beside what the same score detects
scores       other scores on the same case; `jobs/benchmark.py detection` has all cases and intervals
"""

from functools import cached_property, lru_cache

import numpy as np
from scipy.stats import mannwhitneyu, ttest_ind

from jobs.benchmark.detection.compared_scores import SCORES
from jobs.benchmark.detection.subjects import Subject, scores_of
from jobs.benchmark.detection.suite import train_or_load
from jobs.charts import outlines
from jobs.experiments import Outcome, say
from jobs.reproduce_paper.workshop import Workshop
from volgrowth.analysis.calibration.error_rates import FDR, q_values
from volgrowth.analysis.calibration.evidence import Judged, judge_images
from volgrowth.analysis.ranking import auroc, tpr_at_fpr
from volgrowth.models import load_model
from volgrowth.numerics import Denoiser
from volgrowth.report.charts.figures import ACCENT, COOL, MUTED

COMPARED = ("vgr", "traces", "loss", "flipd", "sharpness", "noise_norm", "pia", "secmi")


class PlantedCase(Subject):
    """A case of the bench and its denoiser. Arrays are over families, the distinct images of the training set."""

    @cached_property
    def denoiser(self) -> Denoiser:
        return load_model(str(self.trained.model))

    @property
    def memorized(self) -> np.ndarray:
        """(families,) bool: images that samples reproduce."""
        return self.positive

    @property
    def plain(self) -> np.ndarray:
        """(families,) bool: flat, gradient and faint images."""
        return np.char.startswith(self.case.names.astype(str), "plain")

    @property
    def distinct(self) -> np.ndarray:
        """(families, C, H, W) uint8."""
        return self.pixels[: len(self.case.names)]

    @property
    def axes(self) -> int:
        """The most axes that there can be: the dimension of an image."""
        return int(np.prod(self.pixels.shape[1:]))

    def calibrate(self, values: np.ndarray) -> Judged:
        """Calibrate a score, high for suspicious, of the families and then the held-out images.

        Raises:
            ValueError: the case has too few held-out images.
        """
        calibration = judge_images(*self.images(values))
        if calibration is None:
            raise ValueError(f"{len(self.case.holdout)} held-out images: expected more, to calibrate with")
        return calibration

    def settings(self) -> dict[str, object]:
        """Return the sizes of the case for the page."""
        copies, samples = self.case.copies, self.trained.samples
        return {
            "case": f"{self.trained.setup.name}, seed {self.trained.seed}",
            "rows": len(self.case.train),
            "distinct images": len(copies),
            "shape": "x".join(map(str, self.pixels.shape[1:])),
            "planted": ", ".join(f"{(copies == n).sum()} with {n} copies" for n in np.unique(copies)[::-1] if n > 1),
            "plain": self.plain.sum(),
            "held out": len(self.case.holdout),
            "reproduced": f"{self.memorized.sum()} in {len(samples)} samples by DDIM ({self.truth.rule})",
        }


@lru_cache(maxsize=1)
def planted_case(shop: Workshop) -> PlantedCase:
    """Train and sample the case, or take both from `shop.models`; measure what the samples reproduce."""
    return PlantedCase.of(train_or_load(shop.setup, shop.seed, shop.folder, shop.models, say))


@lru_cache(maxsize=len(SCORES))
def _calibrated(shop: Workshop, name: str) -> tuple[np.ndarray, Judged]:
    """Return (families,) a score of the bench, and its calibration."""
    say(f"scoring with {name}")
    case = planted_case(shop)
    values = scores_of(case, next(score for score in SCORES if score.name == name))
    return values[: len(case.distinct)], case.calibrate(values)


def excess_score(shop: Workshop, name: str) -> np.ndarray:
    """Return (families,) a score of the bench less what is expected of images so complex."""
    score, calibration = _calibrated(shop, name)
    return score - calibration.first_expected


def audit_flags(shop: Workshop) -> np.ndarray:
    """Return (families,) bool, the images that an audit would flag by the traces alone at the default FDR."""
    calibration = _calibrated(shop, "traces")[1]
    p_value = np.where(calibration.outside, 1.0, calibration.used)
    return q_values(p_value, planted_case(shop).content[: len(p_value)]) <= FDR


def _test_rows(shop: Workshop, name: str, label: str) -> list[dict[str, object]]:
    """Return the paper's test and the detection rates of a score, raw and calibrated; tests are one-sided."""
    case = planted_case(shop)
    memorized, plain = case.memorized, case.plain & ~case.memorized
    rows: list[dict[str, object]] = []
    for form, score in (("raw", _calibrated(shop, name)[0]), ("calibrated", excess_score(shop, name))):
        ours, others = score[memorized], score[~memorized]
        rows.append(
            {
                "score": label,
                "form": form,
                "memorized, mean": ours.mean(),
                "others, mean": others.mean(),
                "plain, mean": score[plain].mean() if plain.any() else None,
                "p, Welch": float(ttest_ind(ours, others, equal_var=False, alternative="greater").pvalue),
                "p, Mann-Whitney": float(mannwhitneyu(ours, others, alternative="greater").pvalue),
                "AUROC": auroc(score, memorized),
                "TPR at 1% FPR": tpr_at_fpr(score, memorized),
                "AUROC, no plain": auroc(score[~plain], memorized[~plain]),
            }
        )
    return rows


def memorized(shop: Workshop) -> Outcome:
    """The paper's test of memorized against unmemorized images, and how well a detector tells them apart."""
    rows = [
        *_test_rows(shop, "vgr", "growth, 1 axis, 1 step (paper)"),
        *_test_rows(shop, "vgr_10x10", "growth, 10 axes, 10 steps"),
        *_test_rows(shop, "traces", "traces, levels 0.16 to 0.45"),
    ]
    case, panels = planted_case(shop), []
    for name, label in (("vgr", "growth, 1 axis, 1 step, nats"), ("traces", "traces, levels 0.16 to 0.45")):
        panels += [(label, _calibrated(shop, name)[0]), (f"{label}, calibrated", excess_score(shop, name))]
    groups = {
        "others": ~case.memorized & ~case.plain,
        "plain": case.plain & ~case.memorized,
        "memorized": case.memorized,
    }
    colours = {"others": MUTED, "plain": COOL, "memorized": ACCENT}
    return Outcome(
        sentences=[
            f"For the published score the test gives p = {rows[0]['p, Welch']:.0e} (Welch) and "
            f"{rows[0]['p, Mann-Whitney']:.0e} (Mann-Whitney). At 1% false positives it finds "
            f"{rows[0]['TPR at 1% FPR']:.0%} of the memorized images, calibrated on complexity "
            f"{rows[1]['TPR at 1% FPR']:.0%}.",
            f"The trace at a middle noise level, calibrated, finds {rows[-1]['TPR at 1% FPR']:.0%} "
            f"(AUROC {rows[-1]['AUROC']:.3f}).",
        ],
        tables={"table": rows},
        settings=case.settings(),
        figures={"scores": outlines(panels, groups, colours)},
    )


def other_scores(shop: Workshop) -> Outcome:
    """Other scores on this one case."""
    keep = ("score", "form", "evaluations", "AUROC", "TPR at 1% FPR", "AUROC, no plain")
    rows = [
        {column: ({"evaluations": score.nfe} | row)[column] for column in keep}
        for score in SCORES
        if score.name in COMPARED
        for row in _test_rows(shop, score.name, score.source)
    ]
    best = max(rows, key=lambda row: (row["TPR at 1% FPR"], row["AUROC"]))
    return Outcome(
        sentences=[f"Highest here: {best['score']}, {best['form']}, with {best['TPR at 1% FPR']:.0%} at 1% FPR."],
        tables={"table": rows},
        settings=planted_case(shop).settings(),
    )
