"""The whole bench on a tiny case, and its parts on constructed ones."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.benchmark.__main__ import main
from jobs.benchmark.detection import experiment
from jobs.benchmark.detection.all_forms import Forms, compare_forms, form_hits, judge_forms
from jobs.benchmark.detection.audited_presets import CONTESTANTS, Contestant, choose_scores, score_table
from jobs.benchmark.detection.bench_tables import bench, bench_outcome, least_evidence, preset_rows, score_rows
from jobs.benchmark.detection.compared_scores import SCORES, Score, user_score
from jobs.benchmark.detection.experiment import (
    Bench,
    Result,
    judge_preset,
    judge_score,
    mean_over_seeds,
    result_table,
    run_bench,
)
from jobs.benchmark.detection.metrics import METRICS, draw_replicates
from jobs.benchmark.detection.subjects import Subject, describe_images, scores_of
from jobs.benchmark.detection.suite import SUITE, Setup, Trained, choose_cases, is_trained, train_or_load
from jobs.benchmark.detection.targets import LARGE, LARGE_TARGETS, TARGETS, target_rows, target_sentences
from jobs.experiments import publish_outcome
from jobs.pages import DOCS
from tests.support.measured_pages import headings
from volgrowth.analysis.verification.proof import Reproduced
from volgrowth.config import PaperMeasure
from volgrowth.demo.cases import digit_images, plant_copies
from volgrowth.demo.training import Recipe
from volgrowth.errors import UsageError
from volgrowth.sources.pixels.features import features

TINY = Setup(
    "tiny", None, 60, ((3, 20),), Recipe(channels=(8, 8), steps=50, batch=8), plain=10, held_out=60, samples=40
)
CHEAP = tuple(score for score in SCORES if score.name in ("traces", "flipd"))
OTHER = PaperMeasure(num_steps=2)
PRESET = replace(next(preset for preset in CONTESTANTS if preset.name == "standard"), draws=2)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A case of 300 digits of which the ten planted ones, and one more, count as reproduced; it has no model."""
    setup = Setup("made", None, 300, ((10, 5),), Recipe(), plain=40)
    case = plant_copies(digit_images(), 1, trained=300, planting=setup.planting, plain=40, prefix="digit", held_out=300)
    pixels = np.concatenate([case.train[case.first], case.holdout])
    positive = case.copies > 1
    positive[np.flatnonzero(~positive)[0]] = True
    truth = Reproduced(10 * positive.astype(int), np.zeros(len(case.holdout), int), 2)
    trained = Trained(setup, 1, case, tmp_path_factory.mktemp("made") / "model", np.empty((0, 1, 8, 8), np.uint8))
    return Subject(trained, truth, pixels, describe_images(pixels), draw_replicates(positive, 1))


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
    monkeypatch.setattr(experiment, "judge_images", lambda families, holdout: None)


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


def half_reproduced(subject: Subject) -> Subject:
    """The case, with every second of its reproduced families not reproduced."""
    hits = np.where(np.arange(len(subject.positive)) % 2, 0, subject.truth.hits)
    return replace(subject, truth=Reproduced(hits, np.zeros(1, int), 2))


def test_planted_images_that_are_not_reproduced_are_negatives_in_one_number_alone(subject, uncalibrated):
    half = half_reproduced(subject)
    assert 0 < half.positive.sum() < subject.positive.sum()
    planted = np.concatenate([half.case.copies > 1, np.zeros(len(half.case.holdout), bool)])
    (raw,) = judge_score(half, known(), planted.astype(float))
    assert raw.values["auroc"] > raw.values["auroc_all"]


def test_the_audit_of_a_case_judges_families_against_its_held_out_images(subject, monkeypatch):
    """Growth that falls with variance, and is higher where an image is reproduced: the evidence finds these."""
    growth = complexity_and(subject, bonus=1.5)
    monkeypatch.setattr(
        "jobs.benchmark.detection.audited_presets.measure_shared",
        lambda *_: {"growth": growth, "rates": growth[:, None]},
    )
    found = judge_preset(half_reproduced(subject), PRESET, 3)
    assert (found.draw, found.calibrated, found.is_preset) == (3, True, True)
    whole = judge_preset(subject, PRESET, 0)
    assert whole.values["auroc"] > 0.98
    assert whole.values["power_10"] > 0.6
    assert 0.4 < whole.values["member_auroc"] < 0.6
    assert whole.values["lower_quartile"] > 2
    # what is planted and not reproduced is flagged too: false by one count, and left out of the other
    assert found.values["fdr_10"] > 0.3 > found.values["fdr_clear_10"]
    table = score_table(subject, {"growth": growth})
    assert table["content_hash"].to_pylist() == subject.content.tolist()
    assert table["loss"].null_count == len(subject.pixels)


def test_the_mean_over_seeds_has_an_interval_over_seeds(strong, weak):
    other = [replace(result, seed=2) for result in weak]
    for first, second, mean in zip(strong, weak, mean_over_seeds(strong + other), strict=True):
        assert mean.seed is None
        assert mean.values["auroc"] == pytest.approx((first.values["auroc"] + second.values["auroc"]) / 2)
        # both models may be drawn twice, so that the interval holds the value of each
        assert mean.values["auroc_low"] <= second.values["auroc"] <= first.values["auroc"] <= mean.values["auroc_high"]
        assert mean.values["auroc_low"] <= mean.values["auroc"] <= mean.values["auroc_high"]


def evidence_of(results: Judged, preset: str, **values: float) -> Judged:
    """Calibrated results as those of a preset, in one draw each, with some numbers changed."""
    judge = Contestant(preset, PRESET.measure, len(results), "")
    return [
        replace(result, score=judge, draw=draw, values=result.values | values)
        for draw, result in enumerate(results)
        if result.calibrated
    ]


MET = {"auroc": 0.9999, "tpr_at_1_fpr": 1.0, "fdr_clear_10": 0.05, "power_10": 0.95}


def test_a_target_is_met_by_the_mean_over_draws_and_the_worst_draw_stands_beside_it(subject, strong):
    good, bad = (evidence_of(strong, "standard", **MET | {"auroc": value})[0] for value in (0.9999, 0.9985))
    row = target_rows([good, replace(bad, draw=7)], subject)
    assert row is not None
    assert row.shown["standard: AUROC"] == "0.9992 (0.9985)"
    assert row.shown["standard: TPR"] == "1.00"
    assert row.shown["standard: missed"] == "none"
    row = target_rows([replace(bad, draw=draw) for draw in (0, 1)], subject)
    assert row is not None
    assert row.missed == {"standard": ["AUROC 0.9985 < 0.999"]}


def of(case):
    return next(setup for setup in SUITE if setup.name == case)


def test_models_that_were_looked_at_are_counted_apart_and_each_miss_is_named(subject, strong):
    rows = []
    for seed, change in ((1, {}), (2, {"power_10": 0.5}), (3, {})):
        of_seed = replace(subject, trained=replace(subject.trained, seed=seed))
        results = [replace(result, seed=seed) for result in evidence_of(strong, "screen", **MET | change)]
        rows.append(target_rows(results, of_seed))
    assert [row.shown["looked at"] for row in rows if row] == ["yes", "no", "no"]
    further = replace(subject, trained=replace(subject.trained, setup=of("digits-shifted"), seed=3))
    row = target_rows([replace(result, case="digits-shifted") for result in results], further)
    assert row is not None
    assert row.looked_at
    (said,) = target_sentences([row for row in rows if row])
    assert "`screen` (AUROC ≥ 0.998, FDR ≤ 0.13, power ≥ 0.9)" in said
    assert "all met by 1 of 2 models never looked at and by 1 of 1 models looked at" in said
    assert said.endswith("Missed: made with seed 2 (power 0.50 < 0.9).")


def test_the_worst_draw_on_any_model_says_how_much_evidence_reproduced_images_have(strong):
    draws = [
        replace(evidence_of(strong, "standard", lower_quartile=value)[0], seed=seed, draw=draw)
        for seed, draw, value in ((1, 0, 5.0), (2, 0, 4.0), (2, 1, 3.126), (3, 0, np.nan))
    ]
    (said,) = least_evidence([*draws, *mean_over_seeds(draws), *strong])
    assert "Evidence of `standard`: three quarters of the images that samples reproduce have more than 3.13" in said
    assert said.endswith("the least is that of made with seed 2.")


def test_the_large_case_has_targets_of_its_own(subject, strong):
    large = of(LARGE)
    of_large = replace(subject, trained=replace(subject.trained, setup=large))
    results = [
        replace(result, case=LARGE)
        for result in evidence_of(strong, "standard", **MET | {"auroc": 0.99, "fdr_clear_10": 0.25, "power_10": 0.82})
    ]
    row = target_rows(results, of_large)
    assert row is not None
    assert row.missed == {"standard": []}
    assert (row.looked_at, row.shown["standard: FDR"]) == (False, "0.25")
    assert {target.label for target in LARGE_TARGETS} == {"FDR", "power"}
    assert large.trained + large.plain == 20_000


def test_tables_have_presets_beside_single_scores(strong, weak):
    results = mean_over_seeds(
        [*strong, *[replace(r, score=known("other")) for r in weak], *evidence_of(weak, "made-up")]
    )
    first, second, third = score_rows(results, ["made", "elsewhere"])
    assert [row["score"] for row in (first, second, third)] == ["evidence of made-up", "made-up", "other"]
    raw, *calibrated = second["made"].split(" / ")
    assert float(raw) < float(calibrated[0])
    assert first["made"].split(" / ") == ["–", *third["made"].split(" / ")[1:]]
    assert first["elsewhere"] == "– / – / –"
    (row,) = preset_rows(results, "made")
    assert (row["preset"], row["evaluations"]) == ("made-up", PRESET.nfe)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the bench leaves after one tiny case, with two scores and one of the user's."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "my_tiny_scores.py").write_text(
        "def brightness(denoiser, images, seed):\n    return images.flatten(1).mean(1)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        scores: list[Score | Contestant] = [PRESET, *CHEAP, user_score("my_tiny_scores:brightness")]
        said: list[str] = []
        first = run_bench([TINY], [1], folder, folder, scores, said.append)
        assert any("training tiny" in line for line in said)
        said.clear()
        again = run_bench([TINY], [1], folder, folder, scores, said.append)
        assert not any("training" in line or "sampling" in line for line in said)
        assert result_table(first.results).equals(result_table(again.results))
        publish_outcome("detection", "detection", bench([TINY], [1], folder, folder, scores), folder, 1.0)
    assert result_table(first.results).equals(pq.read_table(folder / "detection.parquet"))
    return folder


def test_the_bench_leaves_a_table_of_every_score_raw_and_calibrated(tiny):
    read = pq.read_table(tiny / "detection.parquet")
    rates = [f"{name}_{rate}" for rate in (5, 10, 20) for name in ("fdr", "fdr_clear", "power")]
    numbers = {f"{name}{end}" for name in (*METRICS, *rates) for end in ("", "_low", "_high")}
    assert set(read.schema.names) == {
        *("case", "seed", "draw", "score", "preset", "calibrated", "nfe", "auroc_all", "member_auroc", "r2"),
        *("outside", "lower_quartile"),
        *numbers,
    }
    assert b"torch" in read.schema.metadata[b"made by"]
    rows = read.to_pylist()
    expected = {(name, calibrated, 0) for name in [s.name for s in CHEAP] for calibrated in (False, True)}
    expected |= {("my_tiny_scores:brightness", False, 0), ("my_tiny_scores:brightness", True, 0)}
    expected |= {("standard", True, 0), ("standard", True, 1)}
    assert {(row["score"], row["calibrated"], row["draw"]) for row in rows if row["seed"] == 1} == expected
    means = {(name, calibrated) for name, calibrated, _ in expected}
    assert {(row["score"], row["calibrated"]) for row in rows if row["seed"] is None} == means
    assert {row["nfe"] for row in rows if row["score"].startswith("my_")} == {None}
    assert {row["preset"] for row in rows if row["score"] == "standard"} == {True}


def test_presets_that_are_shared_are_measured_once(tiny):
    """Traces and flipd are columns of one measurement; a preset has one a draw, and an analysis; an own score none."""
    (cache,) = (tiny / "models").glob("tiny-1-*/scores")
    assert len(list(cache.iterdir())) == 1 + 2 * PRESET.draws


def test_cached_scores_that_the_code_no_longer_gives_are_measured_again(tiny):
    subject = Subject.of(train_or_load(TINY, 1, tiny, tiny / "models", print))
    sound = scores_of(subject, CHEAP[0])
    (cache,) = (path for path in (tiny / "models").glob("tiny-1-*/scores/*.npz") if "rate" in np.load(path))
    before = cache.stat().st_mtime_ns
    with np.load(cache) as columns:
        np.savez(cache, **{**columns, "rate": columns["rate"] + columns["rate"].std()})
    np.testing.assert_allclose(scores_of(subject, CHEAP[0]), sound, rtol=1e-4)
    assert cache.stat().st_mtime_ns > before
    np.testing.assert_allclose(scores_of(subject, CHEAP[0]), sound, rtol=1e-4)


def test_the_page_has_every_table_the_command_and_the_versions(tiny):
    written, committed = ((folder / "detection.md").read_text(encoding="utf-8") for folder in (tiny, DOCS))
    for part in ("| my_tiny_scores:brightness | – |", "| tiny | 1 | 1 × 8 × 8 |", "`python ", "torch 2"):
        assert part in written
    for place in ("presets", "cases", "scores"):
        assert headings(written, f"detection-{place}") == headings(committed, f"detection-{place}")
    assert headings(committed, "detection-found") == ["score", "evaluations", *(setup.name for setup in SUITE)]


def test_the_committed_page_has_the_columns_of_the_targets(subject, strong):
    presets = [judged for preset in TARGETS for judged in evidence_of(strong, preset)]
    row = target_rows(presets, subject)
    assert row is not None
    committed = (DOCS / "detection.md").read_text(encoding="utf-8")
    assert headings(committed, "detection-targets") == list(row.shown)


def test_what_is_not_cached_is_left_out_and_said(tiny):
    other = replace(TINY, name="other")
    assert is_trained(TINY, 1, tiny, tiny / "models")
    assert not is_trained(other, 1, tiny, tiny / "models")
    scores: list[Score | Contestant] = [CHEAP[0], replace(PRESET, draws=3), replace(PRESET, name="new", measure=OTHER)]
    found = run_bench([TINY, other], [1], tiny, tiny, scores, print, cached_only=True)
    assert (found.untrained, found.unmeasured) == ([("other", 1)], {"evidence of new": [("tiny", 1)]})
    assert [result.draw for result in found.results if result.is_preset and result.seed == 1] == [0, 1]
    *_, untrained, unmeasured = bench_outcome(found).sentences
    assert untrained == "Left out, since its model is not trained: other with seed 1."
    assert unmeasured == "Left out, since not measured: evidence of new on tiny (seed 1)."
    assert not any("Left out" in said for said in bench_outcome(Bench(found.results, found.subjects)).sentences)
    with pytest.raises(UsageError, match=r"nothing of these cases is cached in .*: run without --cached"):
        run_bench([other], [1], tiny, tiny, scores, print, cached_only=True)


def test_every_form_of_a_planted_image_is_judged(tiny, monkeypatch):
    monkeypatch.setattr("jobs.benchmark.detection.all_forms.DRAWS", 1)
    varied = replace(TINY, name="varied", variation="shifted")
    (row,) = compare_forms([TINY, varied], [1], tiny, tiny / "models")  # exact copies have one form
    assert 70 < row["forms"] < 70 + 60
    subject = Subject.of(train_or_load(varied, 1, tiny, tiny / "models", print))
    forms, families = Forms.of(subject.case), len(subject.positive)
    assert np.isin(subject.case.first, forms.rows).all()
    assert form_hits(subject, forms).sum() == subject.truth.hits.sum()
    # samples hit the last form of one planted family, and an audit finds that form and not the image itself
    one = np.flatnonzero(forms.family == np.bincount(forms.family).argmax())
    seen = replace(
        subject,
        trained=replace(subject.trained, samples=np.repeat(subject.case.train[forms.rows[one[-1:]]], 9, axis=0)),
        truth=Reproduced(9 * (np.arange(families) == forms.family[one[0]]), np.zeros(1, int), 6),
    )
    found = {"evidence": np.zeros(len(forms.rows)), "q_value": np.ones(len(forms.rows))}
    found["evidence"][one[-1]], found["q_value"][one[-1]] = 9.0, 0.01
    assert judge_forms(seen, forms, found) == {
        "AUROC": 1.0,
        "TPR at 1% FPR": 1.0,
        "FDR at 10%, rows": 0.0,
        "FDR at 10%, families": 0.0,
        "power at 10%": 1.0,
        "lower quartile": 9.0,
        "power, reproduced forms": 1.0,
    }


def test_presets_and_built_in_scores_can_be_chosen():
    assert choose_scores(None, []) == [*CONTESTANTS, *SCORES]
    chosen = choose_scores(["loss", "volume"], ["math:sqrt"])
    assert [score.name for score in chosen] == ["volume", "volume", "loss", "math:sqrt"]
    with pytest.raises(UsageError, match=r"score 'lust' is not built in: expected some of .*standard, .*loss"):
        choose_scores(["lust", "loss"], [])


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
    for command in ("detection", "goal"):
        with pytest.raises(SystemExit, match="2"):
            main([command, "--output", str(tmp_path), "--seeds", "2", "0"])
        assert "a seed is 0: expected 1 or more" in capsys.readouterr().err


def test_the_job_says_what_is_wrong_and_exits(tmp_path, monkeypatch, capsys):
    job = Path(__file__).parents[3] / "jobs" / "benchmark.py"
    asked = [str(job), "detection", "--output", str(tmp_path), "--score", "no_such_module:score"]
    monkeypatch.setattr(sys, "argv", asked)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(job), run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: score 'no_such_module:score' cannot be imported")
