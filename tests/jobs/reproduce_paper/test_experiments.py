"""The paper's experiments: measured on models known exactly, and run whole at a size that says nothing but runs."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.benchmark.detection.suite import Setup
from jobs.experiments import run_experiments
from jobs.pages import DOCS
from jobs.reproduce_paper import __main__ as paper
from jobs.reproduce_paper import planted as paper_planted
from jobs.reproduce_paper.overfit import enlarged, trained_and_held_out
from jobs.reproduce_paper.published import published_growth, published_times
from jobs.reproduce_paper.stochastic import draw_ancestral
from jobs.reproduce_paper.workshop import QUICK, Sizes, Workshop, planted_setup
from volgrowth.analysis.calibration import expected_scores as calibration
from volgrowth.demo.cases import digit_images
from volgrowth.demo.training import Recipe
from volgrowth.errors import ModelError
from volgrowth.models import load_model
from volgrowth.numerics import EmpiricalDenoiser, GaussianDenoiser

TINY = Sizes(
    images=3,
    axes=4,
    steps=12,
    channels=(8, 8),
    overfit_steps=(40, 60),
    overfit_samples=8,
    ablation_axes=(1, 3),
    ablation_steps=(1, 3, 12),
    ablation_radii=(0.01, 0.1),
    whole_case=4,
    budget=200,
    fewest=8,
    trajectory_images=2,
    ancestral_samples=12,
    ancestral_steps=4,
    curation_samples=12,
)
SETUP = Setup("tiny-exact", None, 100, ((4, 10),), Recipe((8, 8), 60, 8), plain=20, held_out=120, samples=12)


def exact(points: np.ndarray) -> EmpiricalDenoiser:
    """What a network of unlimited capacity learns from images (n, C, H, W) uint8."""
    denoiser = EmpiricalDenoiser(torch.from_numpy(points / 127.5 - 1))
    denoiser.dtype = torch.float64
    return denoiser


def test_a_single_point_grows_by_the_published_product_of_euler_steps() -> None:
    point = digit_images()[:1]
    growth = published_growth(exact(point), point, axes=3, steps=1000)
    assert growth.volume[0, -1] / 3 == pytest.approx(4.63362, abs=5e-6)
    assert growth.edges[0, -1] / 3 == pytest.approx(4.63362, abs=5e-6)
    assert growth.volume[0, 0] / 3 == pytest.approx(0.43516, abs=5e-6)
    assert growth.ceiling[-1] / 3 == pytest.approx(4.63362, abs=5e-6)
    assert growth.nfe == 4000
    assert not growth.above_ceiling.any()
    assert not growth.sign_flip.any()


def test_distinct_points_grow_as_much_off_their_span_and_stay_under_the_bound() -> None:
    """An overfit model that is exact: the axes see the other points only where these lie."""
    points = np.zeros((3, 1, 4, 4), np.uint8)
    points[:, 0, 0, :3] = 255 * np.eye(3, dtype=np.uint8)  # differences lie in three pixels of sixteen
    growth = published_growth(exact(points), points, axes=1, steps=1000)
    assert not growth.above_ceiling.any()
    assert (growth.volume[:, -1] <= growth.ceiling[-1] + 1e-9).all()
    assert (growth.volume[:, -1] > 4.55).all()
    whole = published_growth(exact(points), points, axes=16, steps=1000)
    assert (whole.volume[:, -1] < whole.ceiling[-1]).all()
    # of sixteen directions two hold the differences, fourteen are those of a point mass
    assert (whole.volume[:, -1] > 14 * 4.63362).all()
    assert not whole.above_ceiling.any()


def test_settings_share_axes_and_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    images = digit_images()[:5]
    denoiser = exact(images)
    three = published_growth(denoiser, images, axes=3, steps=4)
    monkeypatch.setattr("jobs.reproduce_paper.published.AT_ONCE", 8)
    again = published_growth(denoiser, images, axes=3, steps=6)
    np.testing.assert_allclose(three.volume, again.volume[:, :4], rtol=1e-10)
    assert len(published_times(7)) == 8
    assert published_times(1000)[-1] == pytest.approx(1.001)


def test_a_small_difference_is_the_derivative() -> None:
    images = digit_images()[:4]
    denoiser = exact(digit_images()[:40])
    derivative = published_growth(denoiser, images, 2, 40, derivative="jvp").volume
    difference = published_growth(denoiser, images, 2, 40, radius=1e-5).volume
    np.testing.assert_allclose(difference, derivative, atol=1e-4)


def test_ancestral_samples_need_a_table_to_sample_along(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="no DDPM schedule"):
        draw_ancestral(GaussianDenoiser(0.0, 1.0), 1, 4, 0)
    model = load_model(str(tiny_model))
    drawn = draw_ancestral(model, 130, 2, 0)
    assert drawn.shape == (130, 1, 8, 8)
    assert drawn.dtype == np.uint8
    assert (drawn[:128] == draw_ancestral(model, 128, 2, 0)).all()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(TINY, SETUP, None, tmp_path_factory.mktemp("paper") / "models")


@pytest.fixture(scope="module")
def whole(shop: Workshop) -> Path:
    """The folder of all experiments, at sizes that say nothing: so small a model reproduces no image, and four are
    called memorized."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "FOLDS", 2)  # boosting is what takes time here
        patch.setattr(paper_planted.PlantedCase, "memorized", property(lambda self: self.case.copies > 1))
        patch.setattr("jobs.reproduce_paper.stochastic.audit_flags", lambda shop: four(shop))
        patch.setattr("jobs.reproduce_paper.retraining.suspected", lambda score: four(shop))
        return run_experiments("paper", paper.EXPERIMENTS, list(paper.EXPERIMENTS), shop, shop.models.parent).parent


def four(shop: Workshop) -> np.ndarray:
    return paper_planted.planted_case(shop).case.copies > 1


def rows_of(whole: Path, name: str, table: str = "table") -> list[dict[str, Any]]:
    return json.loads((whole / "paper" / f"{name}.json").read_text())["tables"][table]


def test_every_experiment_fills_its_places_and_the_prose_stays(whole: Path) -> None:
    place = re.compile(r"<!-- begin ([\w-]+) -->\n(.*?)<!-- end \1 -->", re.DOTALL)
    committed, filled = (DOCS / "paper.md").read_text(), (whole / "paper.md").read_text()
    assert place.sub("", filled) == place.sub("", committed)
    before, after = dict(place.findall(committed)), dict(place.findall(filled))
    assert {name.split("-")[0] for name in before} == set(paper.EXPERIMENTS)
    assert [name for name in before if before[name] == after[name]] == []
    assert not re.search(r"\bnan\b|\bNone\b", filled)
    pictures = re.findall(r"\]\((paper/.*\.png)\)", filled)
    assert len(pictures) == 6
    for picture in pictures:
        assert (whole / picture).stat().st_size > 2000


def test_the_overfit_table_holds_both_sides(whole: Path) -> None:
    trained, held = rows_of(whole, "overfit")
    assert (trained["count"], held["count"]) == (3, 3)
    assert len(rows_of(whole, "overfit", "images")) == 6
    for row in (trained, held):
        assert row["lowest"] <= row["mean"] <= row["highest"]
        assert row["edges, mean"] >= row["mean"] - 1e-6  # Hadamard
    assert [row["training steps"] for row in rows_of(whole, "degrees")] == [40, 60]


def test_the_ablation_has_a_row_for_every_setting(whole: Path, shop: Workshop) -> None:
    rows = rows_of(whole, "ablation", "axes-steps")
    assert [(row["axes"], row["steps"]) for row in rows] == [(k, s) for k in (1, 3) for s in (1, 3, 12)]
    for row in rows:
        assert row["evaluations"] == (1 + row["axes"]) * row["steps"]
        assert 0 <= row["AUROC"] <= 1
        assert 0 < row["memorized"] < row["images"]
        everywhere = row["evaluations"] <= TINY.whole_case
        assert ("TPR, calibrated" in row) == everywhere
        families = len(paper_planted.planted_case(shop).distinct)
        assert row["images"] == (families if everywhere else max(TINY.fewest, TINY.budget // row["evaluations"]))
    exact_row, *others = rows_of(whole, "ablation", "radius")
    assert exact_row["radius"] is None
    assert exact_row["error"] == 0
    assert [row["radius"] for row in others] == [0.01, 0.1]
    assert all(row["error"] < 0.05 for row in others)


def test_growth_along_the_way_stays_below_none_but_its_bound(whole: Path) -> None:
    *groups, bound = rows_of(whole, "trajectory")
    assert [row["group"] for row in groups] == ["memorized", "not memorized", "held out", "plain"]
    assert bound["group"] == "point mass"
    assert bound["at step 1"] == pytest.approx(0.43516, abs=5e-6)
    for row in groups:
        assert row["at step 1"] < row["at step 10"] < row["at step 12"]


def test_scores_are_compared_raw_and_calibrated(whole: Path) -> None:
    for name in ("memorized", "scores"):
        rows = rows_of(whole, name)
        assert [row["form"] for row in rows] == ["raw", "calibrated"] * (len(rows) // 2)
        assert all(0 <= row["AUROC"] <= 1 and 0 <= row["TPR at 1% FPR"] <= 1 for row in rows)


def test_curation_and_its_control_drop_as_many_rows(whole: Path) -> None:
    before, after, control = rows_of(whole, "curation")
    assert before["rows"] - after["rows"] == before["rows"] - control["rows"] == 4 * 9
    flow, ancestral = rows_of(whole, "stochastic")
    assert flow["flagged"] == ancestral["flagged"] == 4


def test_sides_share_no_image_and_have_room_for_the_axes(shop: Workshop) -> None:
    trained, held_out = trained_and_held_out(replace(shop, sizes=QUICK))
    assert trained.shape == held_out.shape == (QUICK.images, 1, 12, 12)
    assert not {image.tobytes() for image in trained} & {image.tobytes() for image in held_out}
    flat = np.full((1, 1, 8, 8), 77, np.uint8)
    assert (enlarged(flat) == 77).all()


def test_a_planted_case_is_calibrated_by_strangers(shop: Workshop) -> None:
    case = paper_planted.planted_case(shop)
    calibrated = case.calibrate(case.features[:, 4])
    assert calibrated.calibration.method == "held-out"
    assert calibrated.calibration.main.r2 > 0.8  # a score that is complexity is explained away
    found = case.trained
    few = replace(
        found.case,
        holdout=found.case.holdout[:10],
        train=found.case.train[:20],
        family=np.arange(20),
        names=found.case.names[:20],
    )
    small = paper_planted.PlantedCase.of(replace(found, case=few))
    with pytest.raises(ValueError, match="10 held-out images"):
        small.calibrate(np.zeros(30))


def test_the_job_says_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "none.npz"
    assert paper.reproduce_paper(["--output", str(tmp_path / "out"), "--data", str(missing)]) == 2
    assert "cannot be read ([Errno 2] No such file" in capsys.readouterr().err
    np.savez(missing, x=np.zeros((20, 8, 8)))
    assert paper.reproduce_paper(["--output", str(tmp_path / "out"), "--data", str(missing)]) == 2
    assert "expected at least 500 uint8 images" in capsys.readouterr().err
    missing.write_bytes(b"no archive")
    assert paper.reproduce_paper(["--output", str(tmp_path / "out"), "--data", str(missing)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        paper.reproduce_paper(["--output", str(tmp_path / "out"), "--only", "nothing"])
    assert stopped.value.code == 2


def test_a_data_file_makes_a_case_of_its_own(tmp_path: Path) -> None:
    data = tmp_path / "colour.npz"
    random = np.random.default_rng(0)
    np.savez(data, x=random.integers(0, 256, (600, 6, 6, 3), np.uint8))
    setup = planted_setup(data)
    assert setup.trained == 300
    assert setup.case(tmp_path, 1).train.shape[1:] == (3, 6, 6)
    known = tmp_path / "mnist12.npz"
    np.savez(known, x=np.zeros((600, 12, 12), np.uint8))
    assert planted_setup(known).name == "mnist-exact"
