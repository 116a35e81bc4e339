"""The whole bench on a tiny case, and its parts on constructed ones."""

import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.benchmark.detection import experiment
from jobs.benchmark.detection.bench_tables import bench, detection_rows, verdict_rows
from jobs.benchmark.detection.compared_scores import SCORES, Score, user_score
from jobs.benchmark.detection.experiment import (
    Result,
    Subject,
    complexity_and_content,
    judge_score,
    mean_over_seeds,
    result_table,
    run_bench,
    score_images,
)
from jobs.benchmark.detection.metrics import METRICS, draw_replicates
from jobs.benchmark.detection.suite import Setup, Trained, choose_cases, train_or_load
from jobs.experiments import publish_outcome
from jobs.pages import DOCS
from tests.support.measured_pages import headings
from volgrowth.analysis.verification.proof import Reproduced
from volgrowth.demo.cases import digit_images, plant_copies
from volgrowth.demo.training import Recipe
from volgrowth.errors import UsageError
from volgrowth.sources.pixels.features import features

TINY = Setup(
    "tiny", None, 60, ((3, 20),), Recipe(channels=(8, 8), steps=50, batch=8), plain=10, held_out=60, samples=40
)
CHEAP = tuple(score for score in SCORES if score.name in ("standard", "flipd"))


@pytest.fixture(scope="module")
def subject() -> Subject:
    """A case of 300 digits of which the ten planted ones, and one more, count as reproduced."""
    setup = Setup("made", None, 300, ((10, 5),), Recipe(), plain=40)
    case = plant_copies(digit_images(), 1, trained=300, planting=setup.planting, plain=40, prefix="digit", held_out=300)
    pixels = np.concatenate([case.train[case.first], case.holdout])
    positive = case.copies > 1
    positive[np.flatnonzero(~positive)[0]] = True
    truth = Reproduced(10 * positive.astype(int), np.zeros(len(case.holdout), int), 2)
    trained = Trained(setup, 1, case, Path("nowhere"), np.empty((0, 1, 8, 8), np.uint8))
    return Subject(trained, truth, pixels, *complexity_and_content(pixels), draw_replicates(positive, 1))


def known(name: str = "made-up") -> Score:
    return Score(name, lambda denoiser, images, seed: images.flatten(1).mean(1), 1, "")


def complexity_and(subject: Subject, bonus: float) -> np.ndarray:
    """A score that falls with the image's variance, with a little noise, and a bonus for what is reproduced."""
    noise = np.random.default_rng(0).normal(0, 0.02, len(subject.pixels))
    values = noise - 10 * subject.features[:, 1]
    values[: len(subject.positive)][subject.positive] += bonus
    return values


def test_complexity_is_that_of_the_audit(subject):
    row = features(subject.pixels[7])
    assert subject.features[7, 0] == pytest.approx(np.log(row["png_bytes"]))
    assert subject.features[7, 4] == pytest.approx(row["mean"], rel=1e-6)
    assert subject.content[7] == row["content_hash"]


Judged = list[Result]


@pytest.fixture(scope="module")
def strong(subject: Subject) -> Judged:
    return judge_score(subject, known(), complexity_and(subject, bonus=1.5))


@pytest.fixture(scope="module")
def weak(subject: Subject) -> Judged:
    return judge_score(subject, known(), complexity_and(subject, bonus=0.05))


@pytest.fixture
def uncalibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there are too few held-out images."""
    monkeypatch.setattr(experiment, "calibrate", lambda families, holdout: None)


def test_calibration_finds_what_complexity_hides(strong):
    raw, calibrated = strong
    assert not raw.calibrated
    assert calibrated.calibrated
    assert raw.values["tpr_at_1_fpr"] < 0.5
    assert calibrated.values["auroc"] > 0.98
    assert calibrated.values["r2"] > 0.8
    assert calibrated.values["fdr_20"] <= 0.4
    assert calibrated.values["power_20"] > 0.6
    for name in ("auroc", "tpr_at_1_fpr", "precision_at_k"):
        low, high = calibrated.values[f"{name}_low"], calibrated.values[f"{name}_high"]
        assert low <= calibrated.values[name] <= high


def test_members_are_single_copies_that_are_not_plain(subject, uncalibrated):
    assert subject.members.sum() == 290 - 1
    assert (subject.case.copies[subject.members] == 1).all()
    assert subject.strangers.sum() == 300
    (blind,) = judge_score(subject, known(), complexity_and(subject, bonus=0.0))
    assert 0.4 < blind.values["member_auroc"] < 0.6
    values = np.zeros(len(subject.pixels))
    values[: len(subject.positive)][subject.members] = 1.0
    (told,) = judge_score(subject, known(), values)
    assert told.values["member_auroc"] == 1.0


def test_planted_images_that_are_not_reproduced_are_negatives_and_left_out_of_one_column(subject, uncalibrated):
    hits = np.where(np.arange(len(subject.positive)) % 2, 0, subject.truth.hits)
    half = replace(subject, truth=Reproduced(hits, np.zeros(1, int), 2))
    assert 0 < half.positive.sum() < subject.positive.sum()
    planted = np.concatenate([half.case.copies > 1, np.zeros(len(half.case.holdout), bool)])
    (raw,) = judge_score(half, known(), planted.astype(float))
    assert raw.values["auroc_clear"] > raw.values["auroc"]


def test_the_mean_over_seeds_has_the_interval_of_the_mean(strong, weak):
    for first, second, mean in zip(strong, weak, mean_over_seeds(strong + weak), strict=True):
        assert mean.seed is None
        assert mean.values["auroc"] == pytest.approx((first.values["auroc"] + second.values["auroc"]) / 2)
        assert mean.replicates["auroc"] == pytest.approx((first.replicates["auroc"] + second.replicates["auroc"]) / 2)
        assert mean.values["auroc_low"] <= mean.values["auroc"] <= mean.values["auroc_high"]


@pytest.mark.parametrize("better", [True, False])
def test_the_verdict_is_about_the_headline_s_interval(strong, weak, better):
    mine, other = (strong, weak) if better else (weak, strong)
    mine = [replace(result, score=known("standard")) for result in mine]
    other = [replace(result, score=known("rival")) for result in other]
    results = mean_over_seeds(mine + other)
    (verdict,) = verdict_rows(results, ["made"])
    assert verdict["best other"] == "rival, calibrated"
    assert verdict["matches"] == ("yes" if better else "no")
    difference, low, high = map(float, re.findall(r"[+-][\d.]+", verdict["difference"]))
    assert low <= difference <= high
    assert (difference > 0) is better
    rival = detection_rows(results, "made")[1]
    assert (rival["score"], rival["evaluations"]) == ("rival", 1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the bench leaves after one tiny case, with two scores and one of the user's."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "my_tiny_scores.py").write_text(
        "def brightness(denoiser, images, seed):\n    return images.flatten(1).mean(1)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        scores = [*CHEAP, user_score("my_tiny_scores:brightness")]
        said: list[str] = []
        first = run_bench([TINY], 1, folder, folder, scores, said.append)
        assert any("training tiny" in line for line in said)
        said.clear()
        again = run_bench([TINY], 1, folder, folder, scores, said.append)
        assert not any("training" in line or "sampling" in line for line in said)
        assert result_table(first[0]).equals(result_table(again[0]))
        publish_outcome("detection", "detection", bench([TINY], 1, folder, folder, scores), folder, 1.0)
    assert result_table(first[0]).equals(pq.read_table(folder / "detection.parquet"))
    return folder


def test_the_bench_leaves_a_table_of_every_score_raw_and_calibrated(tiny):
    read = pq.read_table(tiny / "detection.parquet")
    numbers = [f"{name}{end}" for name in METRICS for end in ("", "_low", "_high")]
    rates = [f"{name}_{rate}" for rate in (5, 10, 20) for name in ("fdr", "fdr_clear", "power")]
    names = ["case", "seed", "score", "calibrated", "nfe", *numbers, "auroc_clear", "member_auroc", *rates]
    assert read.schema.names == [*names, "r2", "outside"]
    assert b"torch" in read.schema.metadata[b"made by"]
    rows = read.to_pylist()
    expected = {(name, calibrated) for name in [s.name for s in CHEAP] for calibrated in (False, True)}
    expected |= {("my_tiny_scores:brightness", False), ("my_tiny_scores:brightness", True)}
    assert {(row["score"], row["calibrated"]) for row in rows if row["seed"] == 1} == expected
    assert {(row["score"], row["calibrated"]) for row in rows if row["seed"] is None} == expected
    assert {row["nfe"] for row in rows if row["score"].startswith("my_")} == {None}


def test_presets_that_are_shared_are_measured_once(tiny):
    """standard and flipd are columns of one measurement, and a user's own score is not cached."""
    (cache,) = (tiny / "models").glob("tiny-1-*/scores")
    assert len(list(cache.iterdir())) == 1


def test_cached_scores_that_the_code_no_longer_gives_are_measured_again(tiny):
    (cache,) = (tiny / "models").glob("tiny-1-*/scores/*.npz")
    subject = Subject.of(train_or_load(TINY, 1, tiny, tiny / "models", print))
    sound = score_images(subject, CHEAP[0])
    before = cache.stat().st_mtime_ns
    with np.load(cache) as columns:
        np.savez(cache, **{**columns, "growth": columns["growth"] + columns["growth"].std()})
    np.testing.assert_allclose(score_images(subject, CHEAP[0]), sound, rtol=1e-4)
    assert cache.stat().st_mtime_ns > before
    np.testing.assert_allclose(score_images(subject, CHEAP[0]), sound, rtol=1e-4)


def test_the_page_has_every_table_the_command_and_the_versions(tiny):
    written, committed = ((folder / "detection.md").read_text(encoding="utf-8") for folder in (tiny, DOCS))
    for part in ("| tiny | my_tiny_scores:brightness | – |", "| tiny | 1 | 1 × 8 × 8 |", "`python ", "torch 2"):
        assert part in written
    for place in ("cases", "found", "rates", "scores"):
        assert headings(written, f"detection-{place}") == headings(committed, f"detection-{place}")


def test_the_committed_page_has_the_columns_of_the_verdict(strong, weak):
    results = mean_over_seeds([replace(result, score=known("standard")) for result in strong] + weak)
    (verdict,) = verdict_rows(results, ["made"])
    assert headings((DOCS / "detection.md").read_text(encoding="utf-8"), "detection-verdicts") == list(verdict)


def test_wrong_cases_and_seeds_are_said(tmp_path, capsys):
    with pytest.raises(
        UsageError, match=r"case 'mnist-exact' is not to be had: expected one of digits-exact, .*images"
    ):
        choose_cases(tmp_path, ["digits-exact", "mnist-exact"])
    assert not capsys.readouterr().out
    assert [setup.name for setup in choose_cases(tmp_path, None)] == ["digits-exact", "digits-shifted", "digits-near"]
    said = capsys.readouterr().out
    assert f"left out: mnist-exact, since mnist12.npz is not in {tmp_path}" in said
    assert "left out: emoji-exact" in said
    with pytest.raises(UsageError, match="seeds is 0"):
        run_bench([], 0, tmp_path, tmp_path)


def test_the_job_says_what_is_wrong_and_exits(tmp_path, monkeypatch, capsys):
    job = Path(__file__).parents[3] / "jobs" / "benchmark.py"
    asked = [str(job), "detection", "--output", str(tmp_path), "--score", "no_such_module:score"]
    monkeypatch.setattr(sys, "argv", asked)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(job), run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: score 'no_such_module:score' cannot be imported")
