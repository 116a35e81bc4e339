"""Dropping copies and training again: what is dropped, what is counted, and whether it helps."""

from pathlib import Path

import numpy as np
import pytest

from jobs.reproduce_paper.retraining import (
    compare_curation,
    copies_of,
    mean_loss,
    retrain_without,
    sample_hits,
    suspected,
)
from volgrowth.demo.cases import LabelledSet, digit_images, digits_case, plant_copies
from volgrowth.demo.training import Recipe, train_model
from volgrowth.models import load_model

TINY = Recipe(channels=(8, 8), steps=40, batch=8)


@pytest.fixture(scope="module")
def case() -> LabelledSet:
    return plant_copies(digit_images()[:120], 0, trained=40, planting=((2, 10), (3, 4)), plain=6, prefix="digit")


@pytest.fixture(scope="module")
def model(case: LabelledSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curated") / "model"
    train_model(case.train, folder, 0, TINY)
    return folder


def test_one_image_of_each_suspected_family_stays(case: LabelledSet) -> None:
    flagged = np.zeros(len(case.names), bool)
    flagged[[0, 3, 30]] = True  # ten copies, four copies, one
    rows = copies_of(case, flagged)
    left = np.bincount(np.delete(case.family, rows), minlength=len(case.names))
    assert (left[flagged] == 1).all()
    assert (left[~flagged] == case.copies[~flagged]).all()
    assert len(rows) == 9 + 3


def test_suspects_are_the_highest_few() -> None:
    assert np.flatnonzero(suspected(np.array([0.1, 5.0, -2.0, 3.0]), share=0.3)).tolist() == [1, 3]
    assert suspected(np.arange(1050.0)).sum() == 53


def test_dropping_nothing_trains_the_same_model(case: LabelledSet, model: Path, tmp_path: Path) -> None:
    again = retrain_without(case, np.empty(0, int), tmp_path / "again", 0, TINY)
    first, second = (mean_loss(load_model(str(folder)), case.holdout) for folder in (model, again))
    assert first == pytest.approx(second, rel=1e-5)
    assert retrain_without(case, np.arange(5), again, 0, TINY) == again  # what is there is not trained again


@pytest.mark.parametrize("rows", [np.array([10_000]), np.arange(1000)])
def test_rows_that_cannot_be_dropped_are_refused(case: LabelledSet, rows: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows to drop of"):
        retrain_without(case, rows, tmp_path / "never", 0, TINY)


def test_samples_that_are_training_images_all_hit(
    case: LabelledSet, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sampler that copies: every sample hits the set, none hits a held-out image; and the other way round."""
    for source, hits, null in ((case.train[case.first], 40, 0), (case.holdout, 0, 40)):
        drawn = source[:40]
        monkeypatch.setattr("jobs.reproduce_paper.retraining.draw_samples", lambda *_, drawn=drawn, **__: drawn)
        counted = sample_hits("copies", model, case, len(case.train), 40)
        chance = null * len(case.names) / len(case.holdout)
        assert counted["hits"] == hits / 40
        assert counted["held-out null"] == pytest.approx(chance / 40)
        assert counted["standard errors above"] == pytest.approx((hits - chance) / (hits + chance) ** 0.5)


def test_the_control_drops_as_many_rows(case: LabelledSet, model: Path, tmp_path: Path) -> None:
    flagged = case.copies > 1
    whole, dropped, random = compare_curation(case, flagged, model, tmp_path, 0, TINY, samples=16)
    assert whole["rows"] == len(case.train)
    assert dropped["rows"] == random["rows"] == len(case.names)
    assert {row["samples"] for row in (whole, dropped, random)} == {16}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_deduplicating_by_evidence_ends_memorization_and_a_random_drop_does_not(demo: Path, tmp_path: Path) -> None:
    """On the demo's audit: evidence in, two models trained again, hits out."""
    import pyarrow.parquet as pq

    case = digits_case()
    findings = pq.read_table(demo / "audit" / "findings.parquet").sort_by("row")
    suspects = suspected(findings.column("evidence").to_numpy()[case.first])
    # half the steps of the demo's model: the random drop has to memorize in less time
    recipe = Recipe(steps=1000)
    whole, dropped, random = compare_curation(
        case, suspects, demo / "model", tmp_path, seed=1, recipe=recipe, samples=500
    )
    assert whole["standard errors above"] > 10
    # of 500 samples: .42 hit before; .016 against a null of .008 after; .19 after the random drop, 9.6 errors above it
    assert dropped["hits"] < dropped["held-out null"] + 0.03
    assert random["standard errors above"] > 7
    assert random["hits"] > 5 * dropped["hits"]
    assert dropped["reproduced"] <= 2 < random["reproduced"]
