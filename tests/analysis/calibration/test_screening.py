"""A cascade's promises: p-values that are valid with a screen before them, and a bound on what the screen lost."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy.stats import false_discovery_control, hypergeom

from tests.support.tables import failed, many, scores
from volgrowth.analysis.calibration import expected_scores as calibration
from volgrowth.analysis.calibration.error_rates import FDR, q_values
from volgrowth.analysis.calibration.evidence import judge_images
from volgrowth.analysis.calibration.expected_scores import Passing, ScoredImages, fit_screen
from volgrowth.analysis.calibration.expected_scores import usable as usable_images
from volgrowth.analysis.calibration.screening import LEVEL, RECALL, Screening, bound_loss, most_among, sample_size
from volgrowth.analysis.findings import analyse
from volgrowth.errors import DataError

SHARE = 0.1


def with_all(some: Screening) -> Screening:
    """The same screening with an entry for every image."""
    rows = np.flatnonzero(np.unpackbits(some.others))
    no, nothing = np.zeros(len(rows), bool), np.empty(0, np.uint8)
    added = {"row": rows, "picture": rows + 10**9, "p_value": np.ones(len(rows))}
    added |= dict.fromkeys(("passed", "measured", "flagged"), no)
    columns = {name: np.concatenate([getattr(some, name), values]) for name, values in added.items()}
    return Screening(**columns, tests=some.tests, others=nothing)


@pytest.fixture
def no_complexity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image is expected to show the same, so that thousands of audits can be simulated."""
    monkeypatch.setattr(calibration, "_fit", lambda images: None)
    monkeypatch.setattr(calibration, "predictor", lambda *_: lambda features: np.zeros(len(features)))


def pair(random: np.random.Generator, count: int, shift: float = 0.0) -> tuple[ScoredImages, ScoredImages]:
    """Screen and score of so many images, which go together."""
    score = random.normal(shift, 1, count)
    screen = 0.7 * score + random.normal(0, 0.7, count)
    content = random.integers(2**63, size=count).astype(np.uint64)
    return ScoredImages(np.zeros((count, 1)), screen, content), ScoredImages(np.zeros((count, 1)), score, content)


def screened_p_values(random: np.random.Generator, audited: int, held: int, memorized: int = 0) -> Any:
    """p-values with and without the screen; the last `memorized` images are far out."""
    common, far = pair(random, audited), pair(random, memorized, shift=6.0)
    screen, score = (
        ScoredImages(*(np.concatenate(both) for both in zip(vars(a).values(), vars(b).values(), strict=True)))
        for a, b in zip(common, far, strict=True)
    )
    held_screen, held_score = pair(random, held)
    fitted = fit_screen(held_screen, usable_images(held_screen).rows, SHARE, len(screen.score))
    assert fitted is not None
    passed = Passing(fitted.passes(screen), fitted.held)
    unmeasured = np.where(passed.audited, score.score, -np.inf)
    found = judge_images(ScoredImages(score.features, unmeasured, score.content), held_score, passing=passed)
    whole = judge_images(score, held_score)
    assert found is not None
    assert whole is not None
    return found, whole, passed, score.content


@pytest.mark.usefixtures("no_complexity")
def test_p_values_of_innocent_images_are_uniform_or_larger():
    random = np.random.default_rng(0)
    p_values = np.stack([screened_p_values(random, 40, 100)[0].used for _ in range(500)])
    for level in (0.01, 0.02, 0.05, 0.1, 0.2):
        share = (p_values <= level + 1e-9).mean(1)
        assert share.mean() <= level + 3 * share.std() / np.sqrt(len(share)), level
    # and are not idle: of the tenth that passes the smallest are as small as without a screen
    assert (p_values <= 0.02).mean() > 0.01


@pytest.mark.usefixtures("no_complexity")
def test_the_promised_rate_is_kept_and_little_is_lost():
    random, false, ratio = np.random.default_rng(1), [], []
    for _ in range(200):
        found, whole, _, content = screened_p_values(random, 400, 400, memorized=40)
        flags, others = (q_values(each.used, content) <= FDR for each in (found, whole))
        false.append(flags[:400].sum() / max(flags.sum(), 1))
        ratio.append((flags & others).sum() / max(others.sum(), 1))
    assert np.mean(false) <= FDR + 3 * np.std(false) / np.sqrt(len(false))
    assert np.mean(ratio) > 0.95


@pytest.mark.usefixtures("no_complexity")
def test_what_does_not_pass_has_p_of_one_whatever_its_score():
    found, whole, passed, _ = screened_p_values(np.random.default_rng(2), 300, 200)
    out = ~passed.audited
    assert 0.8 < out.mean() < 1
    assert (found.used[out] == 1).all()
    assert (found.used[~out] <= whole.used[~out]).all()  # fewer held-out images are in their way
    assert found.unscreened is not None
    assert found.unscreened[~out].tolist() == whole.used[~out].tolist()
    assert 0.1 <= passed.held.mean() < 0.12


def simulated(random: np.random.Generator, seen: float, sampled: int, tests: int = 2000) -> Any:
    """A screen that lets a tenth of the innocent and a share `seen` of 60 memorized images through, and the truth."""
    p_value = np.concatenate([random.uniform(size=tests - 60), random.uniform(0, 0.002, 60)])
    passed = np.concatenate([random.uniform(size=tests - 60) < SHARE, random.uniform(size=60) < seen])
    whole = false_discovery_control(p_value) <= FDR
    flagged = false_discovery_control(np.where(passed, p_value, 1)) <= FDR
    row = random.permutation(10 * tests)[:tests]
    picture = np.arange(tests)
    screening = Screening(row, passed, passed, flagged, np.where(passed, p_value, 1), picture, tests)
    drawn = screening.sample(sampled, seed=int(random.integers(2**31)))
    known = passed | np.isin(row, drawn)
    return Screening(row, passed, known, flagged, np.where(known, p_value, 1), picture, tests), drawn, whole


@pytest.mark.parametrize("seen", [1.0, 0.9, 0.5, 0.0])
@pytest.mark.parametrize("sampled", [40, 300])
def test_the_bound_holds_as_often_as_it_says(seen, sampled):
    random, held, trials = np.random.default_rng(int(10 * seen) + sampled), 0, 200
    for _ in range(trials):
        screening, drawn, whole = simulated(random, seen, sampled)
        found = bound_loss(screening, drawn)
        lost = (whole & ~screening.flagged).sum()
        recall = (whole & screening.flagged).sum() / max(whole.sum(), 1)
        held += lost <= found.flags_lost and (found.recall is None or recall >= found.recall - 1e-12)
    assert held >= LEVEL * trials - 2 * np.sqrt(trials * LEVEL * (1 - LEVEL))


def test_the_bound_says_something():
    """All others measured: the loss itself. None: nothing. With the sample that is asked for and no hit: the recall."""
    random = np.random.default_rng(7)
    screening, _, _ = simulated(random, 1.0, 0)
    nothing = bound_loss(screening, np.empty(0, int)).recall
    assert nothing is not None
    assert nothing < 0.1
    screening, drawn, whole = simulated(random, 0.8, 10**6)
    exact = bound_loss(screening, drawn)
    assert exact.sampled == exact.out == (~screening.passed).sum()
    assert exact.flags_lost == (whole & ~screening.flagged).sum()
    assert exact.recall == pytest.approx((whole & screening.flagged).sum() / whole.sum())
    assert exact.missed > 0


def test_a_whole_audit_without_flags_has_none_to_lose():
    no, rows = np.zeros(100, bool), np.arange(100)
    nothing = Screening(rows, no, ~no, no, np.ones(100), rows, 100)
    found = bound_loss(nothing, np.arange(100))
    assert (found.flags_lost, found.recall, found.missed) == (0, None, 0)
    no = np.empty(0, bool)
    empty = bound_loss(Screening(np.empty(0, int), no, no, no, np.empty(0), np.empty(0, int), 0), np.empty(0, int))
    assert (empty.out, empty.sampled, empty.recall) == (0, 0, None)


@pytest.mark.parametrize(
    ("hits", "sampled", "population"), [(0, 30, 200), (3, 50, 400), (5, 5, 30), (0, 0, 9), (2, 9, 9)]
)
def test_most_among_is_the_exact_bound(hits, sampled, population):
    possible = range(hits, population - (sampled - hits) + 1)
    fits = [k for k in possible if hypergeom.cdf(hits, population, k, sampled) > 1 - LEVEL]
    assert most_among(hits, sampled, population) == max(fits)


def test_the_sample_that_is_asked_for_proves_the_recall():
    for found, population in ((20, 920), (500, 90_000), (3, 50)):
        size = sample_size(found, population)
        lost = most_among(0, size, population)
        assert found / (found + lost) >= RECALL - 1e-12
        assert found / (found + most_among(0, size - 1, population)) < RECALL


def test_samples_are_drawn_by_the_seed_and_bounded():
    screening = simulated(np.random.default_rng(3), 1.0, 0)[0]
    assert screening.sample(50, 1).tolist() == screening.sample(50, 1).tolist() != screening.sample(50, 2).tolist()
    assert np.isin(screening.sample(50, 1), screening.out).all()
    assert len(screening.sample(10**9, 1)) == len(screening.out)
    assert len(screening.sample(None, 1)) == int(0.05 * len(screening.out))


def tables(memorized: int = 20) -> tuple[pa.Table, pa.Table, list[dict[str, Any]]]:
    """400 audited images with losses, copies and a failed row among them, and 300 held-out ones."""
    random, sets = np.random.default_rng(5), []
    for count, seed in ((400, 1), (300, 2)):
        rows = many(count, seed)
        for row in rows:
            row["screen"] = row["growth"]
            row["noise_norm"] = float(np.exp(random.normal(0, 0.1)))
            row["loss"] = float(0.1 * np.exp(random.normal(0, 0.1)))
        sets.append(rows)
    for row in sets[0][:memorized]:
        row["growth"] += 30
        row["loss"] = 0.01
    copy = dict(sets[0][3])
    return scores(*sets[0], failed(), copy), scores(*sets[1]), [*sets[0], failed(), copy]


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regressions that are fitted less closely: a cascade and the whole audit have the same ones."""
    monkeypatch.setattr(calibration, "ROUNDS", 60)


def only(measured: np.ndarray, rows: list[dict[str, Any]]) -> pa.Table:
    """The table of a cascade that measured these rows."""
    nothing = {"growth": None, "rates": None, "log_likelihood": None}
    return scores(*[row if index in measured else {**row, **nothing} for index, row in enumerate(rows)])


@pytest.mark.usefixtures("few_rounds")
def test_a_cascade_finds_what_the_whole_audit_finds():
    table, held, rows = tables()
    whole = analyse(table, held).findings
    screening = analyse(only(np.empty(0), rows), held, screen_share=SHARE).screening
    assert screening is not None
    assert not screening.measured.any()
    assert len(screening.passing) < 150
    assert 401 not in screening.passing  # a copy: the first row of an image stands for all
    flagged = np.flatnonzero(pc.fill_null(whole["memorized"][:400], False).to_numpy())
    assert 10 < len(flagged) <= 25  # 20 are memorized; at a promised 10% two or three more are no surprise
    assert np.isin(flagged, screening.passing).all()
    first = analyse(only(screening.passing, rows), held, screen_share=SHARE).screening
    assert first is not None
    sampled = first.sample(30, seed=0)
    found = analyse(only(np.union1d(screening.passing, sampled), rows), held, screen_share=SHARE)
    assert found.findings["memorized"].to_pylist()[:400] == whole["memorized"].to_pylist()[:400]
    assert found.findings["memorized"].to_pylist()[400:] == whole["memorized"].to_pylist()[400:] == [None, True]
    assert found.findings["q_value"][401] == found.findings["q_value"][3]
    assert found.findings["growth"][401].as_py() is found.findings["excess_growth"][401].as_py() is None
    assert found.screening is not None
    assert bound_loss(found.screening, sampled).missed == 0
    assert bound_loss(found.screening, sampled) == bound_loss(with_all(found.screening), sampled)
    assert found.screening.images > 5 * len(found.screening.row)
    assert with_all(found.screening).sample(30, seed=0).tolist() == found.screening.sample(30, seed=0).tolist()


@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize("full", [False, True], ids=["evidence of the screen", "evidence of the full volume too"])
def test_what_was_screened_out_is_judged_and_not_flagged(full: bool) -> None:
    _, held, rows = tables()
    if full:
        held = held.set_column(held.column_names.index("log_likelihood"), "log_likelihood", held["growth"])
        rows = [{**row, "log_likelihood": row["growth"]} for row in rows]
    screening = analyse(only(np.empty(0), rows), held, screen_share=SHARE).screening
    assert screening is not None
    passing = screening.passing
    sampled = np.setdiff1d(np.arange(400), passing)[::10]
    found = analyse(only(np.union1d(passing, sampled), rows), held, screen_share=SHARE)
    screening, findings = found.screening, found.findings
    assert screening is not None
    assert np.intersect1d(screening.out, passing).size == 0
    out = findings.take(screening.out)
    for name in ("p_value", "q_value", "loss_p_value", "loss_q_value"):
        assert set(out[name].to_pylist()) == {1.0}
    assert set(out["memorized"].to_pylist()) == set(out["precursor"].to_pylist()) == {False}
    assert out["expected_growth"].null_count == 0
    measured = np.isin(screening.out, sampled)
    assert out["excess_loss"].null_count == 0  # the screen's loss
    for name in ("growth", "excess_growth", *(["evidence"] if full else [])):
        assert out[name].is_valid().to_numpy().tolist() == measured.tolist()
    assert full or out["evidence"].null_count == 0  # all of its parts are the screen's


@pytest.mark.usefixtures("few_rounds")
def test_a_screen_that_leaves_out_images_of_one_colour_loses_no_flags():
    """They are never flagged, however much their volume grows."""
    _, held, rows = tables()
    held = held.set_column(held.column_names.index("log_likelihood"), "log_likelihood", held["growth"])
    rows = [{**row, "log_likelihood": row["growth"]} for row in rows]
    screening = analyse(only(np.empty(0), rows), held, screen_share=SHARE).screening
    assert screening is not None
    sampled = np.setdiff1d(np.arange(400), screening.passing)[::10]
    missed = []
    for colour in ({}, {"variance": 0.0}):
        for row in sampled:
            rows[row] |= {"growth": 500.0, **colour}
        found = analyse(only(np.union1d(screening.passing, sampled), rows), held, screen_share=SHARE).screening
        assert found is not None
        missed.append(bound_loss(found, np.intersect1d(sampled, found.out)).missed)
    assert missed[0] > 0
    assert missed[1] == 0


def test_a_cascade_needs_held_out_images_that_serve():
    table, held, _ = tables()
    for usable in (None, held[:49], table):
        with pytest.raises(DataError, match="too few for a cascade: hold out more"):
            analyse(table, usable, screen_share=SHARE)
