"""What curation does: models trained again without what an audit flags, or on less of it, beside a random control.

The audit is that of preset `screen`, at a promised 10%. Each action of `volgrowth curate` makes another training set of
the same case, on which the same recipe is run from the same seed: flagged images without their copies (`dedupe`), each
row of n with the weight 1/n (`downweight`), or not at all (`drop`). The control lacks as many rows as `dedupe` drops,
taken at random, since a smaller set alone changes what is memorized. Hits are counted on the images of the whole set.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.benchmark.detection.audited_presets import audit_case
from jobs.benchmark.detection.subjects import SEED, Subject
from jobs.benchmark.detection.suite import Setup, Trained, models_of
from jobs.experiments import Outcome, say
from jobs.reproduce_paper.retraining import copies_of, sample_hits
from volgrowth.analysis.judging import is_flagged
from volgrowth.config import ScreenMeasure
from volgrowth.demo.cases import LabelledSet
from volgrowth.report.formats import plural

WHOLE = "the whole set"


@dataclass(frozen=True)
class CuratedSet:
    """A training set made of another one.

    Attributes:
        action: what was done to it, for the table.
        rows: of the whole set that stay, (n,).
        weights: how often each of them is drawn, in relation to the others, (n,); None for all alike.
    """

    action: str
    rows: np.ndarray
    weights: np.ndarray | None = None

    @property
    def name(self) -> str:
        """Name of the folder of its model, which changes with all that it is made of."""
        weights = b"" if self.weights is None else self.weights.tobytes()
        return f"curated-{hashlib.sha256(self.rows.tobytes() + weights).hexdigest()[:12]}"


def curated_sets(case: LabelledSet, flagged: np.ndarray, seed: int) -> Iterator[CuratedSet]:
    """Yield what each action makes of a case, and the control.

    Args:
        case: the whole set.
        flagged: families, (families,) bool.
        seed: of the control.
    """
    everything, copies = np.arange(len(case.train)), copies_of(case, flagged)
    yield CuratedSet("`dedupe`: one row of each flagged image stays", np.setdiff1d(everything, copies))
    weights = np.where(flagged[case.family], 1 / case.copies[case.family], 1.0)
    yield CuratedSet("`downweight`: each of n rows of a flagged image weighs 1/n", everything, weights)
    yield CuratedSet("`drop`: no row of a flagged image stays", np.flatnonzero(~flagged[case.family]))
    lost = np.random.default_rng(seed).choice(len(everything), len(copies), replace=False)
    yield CuratedSet("as many rows as `dedupe` drops, at random", np.setdiff1d(everything, lost))


def compare_actions(
    setups: Sequence[Setup], seeds: Sequence[int], data: Path, models: Path, *, cached_only: bool = False
) -> Outcome:
    """Train what is not cached, and return the table of the page.

    Args:
        setups: the cases.
        seeds: of each case.
        data: folder of the image sets.
        models: folder of trained models and measurements.
        cached_only: leave out models that are not there.
    """
    rows, said, settings = list[dict[str, Any]](), list[str](), dict[str, Any]()
    for trained in models_of(setups, seeds, data, models, said, cached_only=cached_only):
        name = f"{trained.setup.name} with seed {trained.seed}"
        subject = Subject.of(trained, cached_only=cached_only)
        flagged = is_flagged(audit_case(subject, ScreenMeasure(), SEED)["q_value"])
        settings[f"flagged of {name}"] = f"{flagged.sum()} of {len(flagged):,} images"
        found, missing = _compare(trained, flagged, cached_only=cached_only)
        if missing:
            said.append(f"Left out, since not trained again: {name}, {'; '.join(missing)}.")
        said.append(_sentence(name, found))
        rows += [{"case": trained.setup.name, "seed": trained.seed, **row} for row in found]
    return Outcome(said, {"table": rows}, settings)


def _compare(trained: Trained, flagged: np.ndarray, *, cached_only: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row of the table for the whole set and for each that is curated, and what is not there."""
    case, home = trained.case, trained.model.parent
    found, missing = [_hits(WHOLE, trained.model, trained, len(case.train))], list[str]()
    for curated in curated_sets(case, flagged, trained.seed):
        model = home / curated.name / "model"
        if not (model / "model_index.json").exists():
            if cached_only:
                missing.append(curated.action)
                continue
            say(f"training {trained.setup.name} again, {curated.action}: {len(curated.rows)} of {len(case.train)} rows")
            trained.setup.train(case.train[curated.rows], model, trained.seed, curated.weights)
        found.append(_hits(curated.action, model, trained, len(curated.rows)))
    return found, missing


def _hits(name: str, model: Path, trained: Trained, rows: int) -> dict[str, Any]:
    """Draw samples of a model and count their hits, or take the row from the cache beside the model."""
    kept = model.parent / f"hits-{trained.setup.samples}.json"
    if not kept.exists():
        kept.write_text(json.dumps(sample_hits(name, model, trained.case, rows, trained.setup.samples)))
    row: dict[str, Any] = json.loads(kept.read_text())
    return row


def _sentence(name: str, found: Sequence[dict[str, Any]]) -> str:
    """Say in one sentence what each action leaves."""
    parts = [
        f"{row['trained on'].partition(':')[0]}: {plural(row['reproduced'], 'image')}, {row['hits']:.1%} of samples "
        f"({row['held-out null']:.1%} by chance)"
        for row in found
    ]
    return f"Samples of {name} reproduce, by what it was trained on: {'; '.join(parts)}."
