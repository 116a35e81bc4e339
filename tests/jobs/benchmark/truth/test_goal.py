"""One table of all models: what the evidence of presets finds of what samples reproduce."""

import numpy as np
import pytest

from jobs.benchmark.__main__ import main
from jobs.benchmark.truth import conditions, goal, world
from jobs.benchmark.truth.goal import FEW, OnModel
from tests.jobs.benchmark.truth.test_levels import PIXELS
from tests.support.measured_pages import headings
from volgrowth.analysis.verification.proof import Reproduced


def planted(samples, images, holdout, family):
    copies = np.bincount(family)
    return Reproduced(np.where(copies > 1, 5, 0), np.zeros(len(holdout), int), 2)


def test_the_command_takes_models_from_the_cache_and_names_those_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(world, "WORLD", (PIXELS,))
    monkeypatch.setattr("jobs.benchmark.__main__.SUITE", ())
    monkeypatch.setattr(conditions, "CONDITIONED", ())
    monkeypatch.setattr(goal, "FEW", 3)
    monkeypatch.setattr("jobs.benchmark.detection.suite.find_reproduced", planted)
    where = ["--output", str(tmp_path), "--seeds", "1"]
    assert main(["goal", *where]) == 0
    assert "its model is not trained: tiny with seed 1." in (tmp_path / "truth.md").read_text()
    assert main(["goal", *where, "--cases", "other"]) == 2
    assert main(["truth", *where, "--cases", "tiny", "--only", "screen"]) == 0
    assert main(["goal", *where, "--cases", "tiny"]) == 0
    page = (tmp_path / "truth.md").read_text()
    assert "tiny with seed 1: left out, since `standard` is not measured." in page
    assert headings(page, "goal-table")[:4] == ["case", "seed", "reproduced", "preset"]
    assert "| tiny | 1 | 3 images | screen |" in page


@pytest.mark.parametrize(
    ("auroc", "tpr", "missed"),
    [
        ([0.99, 0.99], [0.9, 0.9], []),
        ([1.0, 0.97], [0.9, 1.0], ["AUROC 0.9850 < 0.99"]),
        ([1.0, 1.0], [0.8, 0.9], ["TPR at 1% FPR 0.85 < 0.9"]),
    ],
)
def test_a_goal_is_met_by_the_mean_and_the_worst_draw_stands_beside_it(auroc, tpr, missed):
    found = OnModel(("tiny", 1), FEW, "images", "screen", {"auroc": np.array(auroc), "tpr_at_1_fpr": np.array(tpr)})
    assert found.missed == missed
    row = found.row()
    assert row["missed"] == ("; ".join(missed) or "none")
    assert row["AUROC"] == ("0.9900" if auroc[0] == 0.99 else row["AUROC"])
    if auroc[1] == 0.97:
        assert row["AUROC"] == "0.9850 (0.9700)"


def test_models_of_too_few_images_are_named_and_not_judged():
    few = OnModel(("tiny", 1), FEW - 1, "images", "standard", {})
    missed = OnModel(
        ("tiny", 2), FEW, "pairs, guided", "standard", {"auroc": np.array([0.9]), "tpr_at_1_fpr": np.ones(1)}
    )
    assert list(goal._sentences([few, missed])) == [
        f"tiny with seed 1: not judged, since samples reproduce {FEW - 1}, fewer than {FEW}.",
        "tiny with seed 2, guided: missed by the evidence of `standard`: AUROC 0.9000 < 0.99.",
    ]
