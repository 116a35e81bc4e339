"""What models under classes and captions reproduce, pair by pair, and which scores find it.

A pair of an image and a condition is reproduced if samples under this condition hit this image, by the rule of the
bench, with held-out images under their own conditions as the null. Positives are reproduced pairs; negatives are pairs
that were trained on once and are not reproduced. Pairs whose condition was not sampled are neither, nor are planted
pairs that samples miss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.benchmark.detection.audited_presets import analysis_code, evidence_of, fingerprint, score_table
from jobs.benchmark.detection.metrics import detect, draw_replicates, interval
from jobs.benchmark.detection.subjects import Columns, Subject, describe_images, keep_derived, states_of
from jobs.benchmark.detection.suite import Setup, Trained
from jobs.benchmark.truth.pair_models import PairTrained, load_null, pairs_are_trained, train_or_load_pairs
from jobs.benchmark.truth.pair_scores import CONDITIONAL, PRICES, definitions, measure_pairs, suspicious
from jobs.benchmark.truth.pairs import ONE, SINGLE, PairSetup
from jobs.experiments import Outcome, say
from volgrowth.analysis.calibration.evidence import judge_images
from volgrowth.analysis.calibration.expected_scores import spread_of
from volgrowth.analysis.findings import analyse
from volgrowth.analysis.judging import is_flagged
from volgrowth.analysis.verification.proof import Reproduced, decide_reproduced
from volgrowth.demo.training import Recipe
from volgrowth.demo.truth import find_reproduced, hit_families
from volgrowth.report.formats import MISSING

CAPTIONS = PairSetup(
    "emoji-captions",
    "emoji32.npz",
    "caption",
    Recipe(channels=(32, 64), steps=4000, batch=32),
    planted=8,
    copies=100,
    spread=10,
    shared=2,
    singles=700,
    held_out=600,
    asked=100,
    samples=12,
)
CONDITIONED = (
    PairSetup(
        "mnist-classes",
        "mnist12.npz",
        "class",
        Recipe(steps=3000),
        planted=10,
        copies=100,
        spread=5,
        shared=0,
        singles=1400,
        held_out=2000,
        asked=0,
        samples=200,
    ),
    CAPTIONS,
    # few images, some of them several times, on a model that has not seen them
    PairSetup(
        "emoji-lora",
        "emoji32.npz",
        "caption",
        Recipe(steps=2000, batch=16),
        planted=8,
        copies=20,
        spread=1,
        shared=0,
        singles=40,
        held_out=500,
        asked=40,
        samples=12,
        roles=(ONE,),
        base=CAPTIONS,
    ),
)
EVIDENCE = "evidence of an audit"
# sums of calibrated scores, beside the evidence of an audit
SUMS = {
    "evidence + growth_contrast": ("loss", "noise_norm", "growth_contrast"),
    "evidence + loss_contrast": ("loss", "noise_norm", "loss_contrast"),
    "unconditional evidence": ("loss_unconditional", "noise_norm_unconditional"),
}
# pairs of either kind from which on it is judged whether a score tells them apart
FEWEST_PAIRS = 8
Judged = dict[str, tuple[np.ndarray | None, np.ndarray | None]]


@dataclass(frozen=True)
class PairTruth:
    """Which pairs a model reproduces: under their condition, under it with guidance, and images without any."""

    plain: Reproduced
    guided: Reproduced
    free: Reproduced

    @classmethod
    def of(cls, trained: PairTrained) -> "PairTruth":
        """Count hits of the samples of a case."""
        case, labelled = trained.case, trained.case.labelled
        plain, guided = (
            decide_reproduced(*_hits(trained, samples), trained.setup.samples)
            for samples in (trained.samples, trained.guided)
        )
        return cls(plain, guided, find_reproduced(trained.free, labelled.train, labelled.holdout, case.row_image))


def _hits(trained: PairTrained, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the hits of each pair, and of each held-out image whose condition was sampled, by samples under it."""
    case, labelled = trained.case, trained.case.labelled
    hit = hit_families(samples, labelled.train, labelled.holdout, case.row_image)
    conditions = np.array(case.conditions)[trained.asked]
    images = int(case.image.max()) + 1
    pairs = zip(case.image, case.condition, strict=True)
    of_pairs = np.array([((hit == image) & (conditions == given)).sum() for image, given in pairs])
    asked = np.flatnonzero(case.holdout_asked)
    held = [((hit == images + row) & (conditions == case.holdout_condition[row])).sum() for row in asked]
    return of_pairs * case.asked, np.array(held, int)


def compare_conditions(
    setups: Sequence[PairSetup], seeds: Sequence[int], data: Path, models: Path, *, cached_only: bool = False
) -> Outcome:
    """Train what is not cached, measure, and return the tables of the page.

    Args:
        setups: the cases.
        seeds: of each case.
        data: folder of the image sets.
        models: folder of trained models and measurements.
        cached_only: leave out models that are not there.
    """
    roles, said = list[dict[str, Any]](), list[str]()
    scores, triggers = dict[str, dict[str, Any]](), dict[str, dict[str, Any]]()
    for setup in setups:
        for seed in seeds:
            if cached_only and not pairs_are_trained(setup, seed, data, models):
                said.append(f"Left out, since its model is not trained: {setup.name} with seed {seed}.")
                continue
            trained = train_or_load_pairs(setup, seed, data, models, say)
            truth = PairTruth.of(trained)
            roles += _role_rows(trained, truth)
            say(f"scoring {setup.name}, seed {seed}: {int(truth.plain.images.sum())} pairs reproduced")
            subject = pair_subject(trained, truth)
            columns = measured_pairs(trained, subject)
            judged = judge_pairs(subject, columns)
            said.append(_flags(trained, truth, pair_evidence(subject, columns)["q_value"]))
            for name, values in judged.items():
                row = scores.setdefault(name, {"score": name, "evaluations": PRICES.get(name, CONDITIONAL)})
                for which, reproduced in (("", truth.plain), (", guided", truth.guided)):
                    row[f"{setup.name} {seed}{which}"] = _cell(trained, reproduced, *values)
                    if told := _told_apart(trained, reproduced, *values):
                        triggers.setdefault(name, {"score": name})[f"{setup.name} {seed}{which}"] = told
    tables = {"roles": roles, "scores": list(scores.values()), "triggers": list(triggers.values())}
    return Outcome(said, tables)


def judge_pairs(subject: Subject, columns: Columns) -> Judged:
    """Return of each score the values of the pairs, raw and calibrated; a sum has no raw value."""
    high, pairs = suspicious(columns), len(subject.positive)
    kept = _calibrated(subject, columns, high)
    excess, held = (
        {name: kept[f"{which} {name}"] for name in high if f"{which} {name}" in kept} for which in ("excess", "held")
    )
    found: Judged = {EVIDENCE: (None, pair_evidence(subject, columns)["evidence"])}
    found |= {name: (values[:pairs], excess.get(name)) for name, values in high.items()}
    for name, parts in SUMS.items():
        if all(part in excess for part in parts):
            spread = spread_of(np.sum([held[part] for part in parts], 0))
            found[name] = (None, np.sum([excess[part] for part in parts], 0) / spread)
    return found


def _calibrated(subject: Subject, columns: Columns, high: Columns) -> Columns:
    """Return `excess NAME` of the pairs and `held NAME` of the held-out images, of each score that is calibrated."""

    def derive() -> Columns:
        found = Columns()
        for name, values in high.items():
            if judged := judge_images(*subject.images(values)):
                unit, pairs = judged.calibration.main.unit, values[: len(subject.positive)]
                found[f"excess {name}"] = (pairs - judged.first_expected) / unit
                found[f"held {name}"] = judged.calibration.main.held / unit
        return found

    return keep_derived(subject, f"excess of {sorted(high)} {fingerprint(columns)} by {analysis_code()}", derive)


def pair_subject(trained: PairTrained, truth: PairTruth) -> Subject:
    """Return the pairs, and the held-out images, as the images that the bench scores."""
    labelled = trained.case.labelled
    pixels = np.concatenate([labelled.train[labelled.first], labelled.holdout])
    of_case = Setup(trained.setup.name, trained.setup.file, 0, (), trained.setup.recipe)
    return Subject(
        Trained(of_case, trained.seed, labelled, trained.model, trained.samples),
        truth.plain,
        pixels,
        describe_images(pixels),
        draw_replicates(2 * truth.plain.images + (trained.case.role != SINGLE), trained.seed),
    )


def measured_pairs(trained: PairTrained, subject: Subject) -> Columns:
    """Return all columns of `measure_pairs`, of pairs and held-out images, from the cache or measured."""
    case, kind = trained.case, trained.setup.kind
    path = trained.home / "scores" / f"pairs-{definitions()}.npz"
    if path.exists():
        with np.load(path) as kept:
            return dict(kept)
    denoiser = trained.load()
    conditions = [*case.condition.tolist(), *case.holdout_condition.tolist()]
    states = states_of(denoiser, subject.pixels)
    columns = measure_pairs(denoiser, load_null(denoiser, kind), states, conditions, trained.setup.guidance, 0)
    path.parent.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {**columns}
    np.savez(path, **arrays)
    return columns


def pair_evidence(subject: Subject, columns: Columns) -> Columns:
    """Return the evidence and the q-value of each pair, as an audit under these conditions finds them."""
    table, pairs = score_table(subject, columns), len(subject.positive)

    def derive() -> Columns:
        found = analyse(table[:pairs], table[pairs:])
        return {"evidence": evidence_of(found, table[:pairs]), "q_value": found.findings["q_value"].to_numpy()}

    return keep_derived(subject, f"pairs of {sorted(columns)} {fingerprint(columns)} by {analysis_code()}", derive)


def pair_results(
    trained: PairTrained, reproduced: Reproduced, values: np.ndarray | None
) -> dict[str, np.ndarray] | None:
    """Return what `detect` finds with the values of the pairs; None without values, or where nothing is reproduced."""
    case = trained.case
    positive = reproduced.images & case.asked
    clear = case.asked & (positive | (case.role == SINGLE))
    if values is None or not positive.any():
        return None
    return detect(values[clear], positive[clear], draw_replicates(positive[clear].astype(int), trained.seed))


def _cell(
    trained: PairTrained, reproduced: Reproduced, raw: np.ndarray | None, calibrated: np.ndarray | None
) -> str | None:
    """Return raw AUROC / calibrated AUROC (interval) / TPR at 1% FPR; None where nothing is reproduced."""
    if not (reproduced.images & trained.case.asked).any():
        return None
    before, after = (pair_results(trained, reproduced, values) for values in (raw, calibrated))
    low, high = interval(after["auroc"]) if after else (np.nan, np.nan)
    shown = [
        f"{before['auroc'][0]:.3f}" if before else MISSING,
        f"{after['auroc'][0]:.3f} ({low:.3f}–{high:.3f})" if after else MISSING,
        f"{after['tpr_at_1_fpr'][0]:.2f}" if after else MISSING,
    ]
    return " / ".join(shown)


def _told_apart(
    trained: PairTrained, reproduced: Reproduced, raw: np.ndarray | None, calibrated: np.ndarray | None
) -> str | None:
    """Return the AUROC, with its interval, of planted pairs that samples reproduce against those that they miss.

    None where there are fewer than `FEWEST_PAIRS` of either kind. A score that is not calibrated is judged raw.
    """
    case, values = trained.case, raw if calibrated is None else calibrated
    planted = case.asked & (case.role != SINGLE)
    positive = reproduced.images[planted]
    if values is None or min(positive.sum(), (~positive).sum()) < FEWEST_PAIRS:
        return None
    found = detect(values[planted], positive, draw_replicates(positive.astype(int), trained.seed))["auroc"]
    low, high = interval(found)
    return f"{found[0]:.3f} ({low:.3f}–{high:.3f})"


def _flags(trained: PairTrained, truth: PairTruth, q_value: np.ndarray) -> str:
    """Say how many pairs an audit flags, and how many of those that are reproduced."""
    flagged, case = is_flagged(q_value), trained.case
    once = case.asked & (case.role == SINGLE) & ~truth.plain.images & ~truth.guided.images
    plain, guided = (found.images & case.asked for found in (truth.plain, truth.guided))
    found = [f"{int((flagged & mine).sum())} of {int(mine.sum())} pairs that" for mine in (plain, guided, once)]
    return (
        f"{trained.setup.name} with seed {trained.seed}: an audit at 10% flags {found[0]} are reproduced, {found[1]} "
        f"are with guidance {trained.setup.guidance:g}, and {found[2]} were trained on once and are neither."
    )


def _role_rows(trained: PairTrained, truth: PairTruth) -> list[dict[str, Any]]:
    """Return one row of the page for each role: what is planted, and what comes out."""
    case, copies = trained.case, trained.case.labelled.copies
    rows = []
    for role in dict.fromkeys(case.role.tolist()):
        mine = case.asked & (case.role == role)
        images = np.unique(case.image[mine])
        rows.append(
            {
                "case": trained.setup.name,
                "seed": trained.seed,
                "image planted under": role,
                "images": len(images),
                "pairs sampled": int(mine.sum()),
                "copies of a pair": int(np.median(copies[mine])),
                "pairs reproduced": int(truth.plain.images[mine].sum()),
                "with guidance": int(truth.guided.images[mine].sum()),
                "samples that hit, %": f"{100 * truth.plain.hits[mine].mean() / trained.setup.samples:.1f}",
                "with guidance, %": f"{100 * truth.guided.hits[mine].mean() / trained.setup.samples:.1f}",
                "images reproduced without a condition": int(truth.free.images[images].sum()),
            }
        )
    return rows
