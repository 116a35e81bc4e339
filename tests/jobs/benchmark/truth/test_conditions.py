"""Pairs of images and conditions: what is planted, what counts as reproduced, and models that know conditions."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from jobs.benchmark.__main__ import main
from jobs.benchmark.truth import conditions, pair_models
from jobs.benchmark.truth.captions import TOKENS, caption_of, embed_captions, text_encoder, train_tokenizer
from jobs.benchmark.truth.conditions import PairTruth, _cell, _role_rows
from jobs.benchmark.truth.pair_models import PairTrained, guide, load_null, pairs_are_trained, train_or_load_pairs
from jobs.benchmark.truth.pair_scores import PRICES, alignment, suspicious
from jobs.benchmark.truth.pairs import ONE, SEVERAL, SHARED, SINGLE, WRONG, PairSetup
from jobs.benchmark.truth.training import Autoencoder
from volgrowth.analysis.verification.proof import Reproduced
from volgrowth.demo.cases import digit_images
from volgrowth.demo.training import Recipe

CLASSES = PairSetup(
    "tiny-classes",
    "classes.npz",
    "class",
    Recipe((8, 8), 3, 4),
    planted=2,
    copies=10,
    spread=5,
    shared=0,
    singles=30,
    held_out=40,
    asked=0,
    samples=4,
    steps=2,
)
CAPTIONS = replace(CLASSES, name="tiny-captions", file="captions.npz", kind="caption", shared=2, asked=3, singles=12)

LORA = replace(CAPTIONS, name="tiny-lora", shared=0, singles=4, held_out=10, asked=4, roles=(ONE,), base=CAPTIONS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Digits under their number, and in colour under the names of emoji; one glyph has no name."""
    folder, images = tmp_path_factory.mktemp("data"), digit_images()[:100, 0]
    np.savez(folder / "classes.npz", x=images, y=np.arange(100) % 10)
    glyphs = [*(f"u1F3{number:02X}" for number in range(60)), "glyph01620"]
    np.savez(folder / "captions.npz", x=np.repeat(images[:61, :, :, None], 3, 3), glyph=glyphs)
    return folder


def test_captions_are_names_of_code_points():
    assert caption_of("u1F600") == "grinning face"
    assert caption_of("uni27B0") == "curly loop"
    assert caption_of("glyph01620") is None
    assert caption_of("club") is None


def test_the_text_encoder_tells_captions_and_the_order_of_words_apart():
    captions = ["red heart", "blue heart", "heart blue", "grinning face"]
    tokenizer = train_tokenizer(captions)
    assert len(tokenizer("red heart").input_ids) == 4  # each word is one token
    found = embed_captions(tokenizer, text_encoder(tokenizer), [*captions, ""])
    assert found.shape == (5, TOKENS, 64)
    apart = [(one - other).abs().max() for index, one in enumerate(found) for other in found[:index]]
    assert min(apart) > 0.1


@pytest.mark.parametrize("setup", [CLASSES, CAPTIONS], ids=lambda setup: setup.kind)
def test_what_is_planted_is_what_was_said(setup, data):
    case = setup.case(data, 1)
    copies, own = case.labelled.copies, dict(zip(case.image, case.condition, strict=True))
    for role, pairs, each in ((ONE, 2, 10), (SEVERAL, 10, 2), (WRONG, 2, 10), (SINGLE, setup.singles, 1)):
        assert (case.role == role).sum() == pairs
        assert (copies[case.role == role] == each).all()
    several = case.image[case.role == SEVERAL]
    assert np.unique(several, return_counts=True)[1].tolist() == [5, 5]
    for shared in np.unique(case.condition[case.role == SHARED]):
        assert ((case.role == SHARED) & (case.condition == shared)).sum() == 2
    rows = {image.tobytes() for image in case.labelled.train}
    assert not any(image.tobytes() in rows for image in case.labelled.holdout)
    assert case.asked[case.role != SINGLE].all()
    assert case.asked.all() or case.asked[case.role == SINGLE].sum() == setup.asked
    assert set(own) == set(range(len(own)))
    again = setup.case(data, 1)
    assert (again.labelled.train == case.labelled.train).all()
    assert (again.condition == case.condition).all()


@pytest.fixture
def drawn(data, tmp_path):
    """Samples that copy the image of the first pair under its own condition, and under one other class."""
    case = CLASSES.case(data, 1)
    image, condition = case.labelled.train[case.labelled.first[0]], int(case.condition[0])
    asked = np.repeat(np.arange(len(case.conditions)), CLASSES.samples)
    random = np.random.default_rng(0)
    samples = random.integers(0, 256, (len(asked), *image.shape), dtype=np.uint8)
    given = np.array(case.conditions)[asked]
    samples[given == condition] = image
    samples[np.flatnonzero(given == (condition + 1) % 10)[:1]] = image
    return PairTrained(CLASSES, 1, case, tmp_path, asked, samples, random.permutation(samples), samples[:3])


def test_a_pair_is_reproduced_by_samples_under_its_own_condition(drawn):
    truth = PairTruth.of(drawn)
    assert truth.plain.hits[0] == CLASSES.samples
    assert truth.plain.images.tolist() == [True, *[False] * (len(drawn.case.role) - 1)]
    one, *others = _role_rows(drawn, truth)
    assert (one["pairs reproduced"], one["samples that hit, %"]) == (1, "50.0")
    assert all(row["pairs reproduced"] == 0 for row in others)


def test_a_fine_tune_is_of_images_that_its_base_held_out(data):
    case, base = LORA.case(data, 1), CAPTIONS.case(data, 1)
    seen = {image.tobytes() for image in base.labelled.train}
    assert not any(image.tobytes() in seen for image in case.labelled.train)
    assert set(case.role) == {ONE, SINGLE}
    assert CAPTIONS.key == repr(CAPTIONS)  # cached models keep their names
    assert LORA.key != replace(LORA, base=None).key


def test_a_cell_judges_pairs_that_were_sampled_and_planted_ones_only_if_they_come_out(drawn):
    case = drawn.case
    hits = np.where(np.arange(len(case.role)) < 2, 5, 0)
    truth = Reproduced(hits, np.zeros(3, int), 2)
    score = np.where(case.role == SINGLE, 0.0, 2.0)
    score[:2] = 1.0  # below the planted ones that do not come out, above the single ones
    assert _cell(drawn, truth, score, None) == "1.000 / – / –"
    assert str(_cell(drawn, truth, None, -score)).startswith("– / 0.000 (")
    assert _cell(drawn, Reproduced(0 * hits, np.zeros(3, int), 2), score, score) is None


def test_alignment_is_a_mean_over_pixels_and_not_the_cosine_of_the_whole():
    one = torch.tensor([[[[3.0, 1.0]], [[4.0, 0.0]]]])  # two channels, two pixels: (3, 4) and (1, 0)
    other = torch.tensor([[[[300.0, -1.0]], [[400.0, 0.0]]]])  # parallel and long, opposite and short
    assert alignment(one, other).tolist() == pytest.approx([0.0])
    assert alignment(one, one).tolist() == pytest.approx([1.0])


def test_conditions_that_bring_an_image_out_are_told_from_others_where_there_are_enough_of_either(drawn, monkeypatch):
    case = drawn.case
    hits = np.where(np.arange(len(case.role)) < 2, 5, 0)
    truth, score = Reproduced(hits, np.zeros(3, int), 2), np.zeros(len(case.role))
    score[:2] = 1.0
    score[case.role == SINGLE] = 2.0  # which are not asked about
    assert conditions._told_apart(drawn, truth, score, None) is None
    monkeypatch.setattr(conditions, "FEWEST_PAIRS", 2)
    assert conditions._told_apart(drawn, truth, score, None) == "1.000 (1.000–1.000)"
    assert str(conditions._told_apart(drawn, truth, score, -score)).startswith("0.000 (")


def test_the_command_trains_both_kinds_and_fills_the_page(data, tmp_path, monkeypatch):
    monkeypatch.setattr(conditions, "CONDITIONED", (CLASSES, CAPTIONS, LORA))
    monkeypatch.setattr(pair_models, "Autoencoder", lambda: Autoencoder((8, 8), recipe=Recipe(steps=2, batch=4)))
    monkeypatch.setattr(pair_models, "FREE", 3)
    some = {name: PRICES[name] for name in ("growth_contrast", "sharpness")}
    monkeypatch.setattr(conditions, "suspicious", lambda columns: {name: suspicious(columns)[name] for name in some})
    asked = ["conditions", "--output", str(tmp_path), "--data", str(data), "--seeds", "1"]
    assert main([*asked, "--cached"]) == 0
    assert "its model is not trained: tiny-captions with seed 1" in (tmp_path / "truth.md").read_text()
    assert main(asked) == 0
    page = (tmp_path / "truth.md").read_text()
    assert "| tiny-lora | 1 | one condition | 2 |" in page
    for name in ("tiny-classes", "tiny-captions"):
        assert f"- {name} with seed 1: an audit at 10% flags " in page
        assert f"| {name} | 1 | {SEVERAL} | 2 | 10 | 2 |" in page
    for setup in (CLASSES, CAPTIONS, LORA):
        assert pairs_are_trained(setup, 1, data, tmp_path / "models")
        trained = train_or_load_pairs(setup, 1, data, tmp_path / "models", print)
        assert len(trained.samples) == len(trained.guided) == setup.samples * len(trained.case.conditions)
        denoiser, level = trained.load(), torch.tensor(1.0, dtype=torch.float64)
        null, y = load_null(denoiser, setup.kind), torch.ones(1, *(denoiser.image_shape or ()))
        seen = [
            model.noise(y, level)
            for condition in trained.case.conditions[:2]
            for model in (denoiser.given([condition]), guide(denoiser, [condition], null, 3.0))
        ]
        assert len({each.sum().item() for each in (*seen, null.noise(y, level))}) == 5  # each condition, guided or not
    assert main([*asked, "--cases", "no-such-case"]) == 2
