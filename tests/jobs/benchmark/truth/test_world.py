"""The cases nearer to what users have: the command on a tiny case, and what its tables say."""

from dataclasses import replace

import pytest

from jobs.benchmark.__main__ import main
from jobs.benchmark.detection import all_forms
from jobs.benchmark.detection.experiment import Bench
from jobs.benchmark.detection.subjects import Subject, is_understood
from jobs.benchmark.detection.suite import Setup, train_or_load
from jobs.benchmark.truth import world
from jobs.benchmark.truth.world import KINDS, WORLD, reproduction_sentences
from tests.support.measured_pages import headings
from volgrowth.demo.training import Recipe

TINY = Setup(
    "tiny",
    None,
    40,
    ((7, 20),),
    Recipe(channels=(8, 8), steps=40, batch=16),
    plain=10,
    held_out=60,
    samples=60,
    altered=KINDS,
)


def test_the_command_fills_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(world, "WORLD", (TINY, replace(TINY, name="other")))
    monkeypatch.setattr(all_forms, "DRAWS", 1)
    asked = ["truth", "--output", str(tmp_path), "--cases", "tiny", "--seeds", "1", "--only", "noise_norm"]
    assert main([*asked, "--cached"]) == 0
    assert "model is not trained: tiny with seed 1" in (tmp_path / "truth.md").read_text()
    assert main(asked) == 0
    page = (tmp_path / "truth.md").read_text()
    assert headings(page, "truth-cases")[:2] == headings(page, "truth-members")[:2] == ["case", "seed"]
    assert headings(page, "truth-exposures")[:4] == ["case", "seed", "copies", "images"]
    assert "| tiny | 1 | 20 | 7 | 70 |" in page  # 40 steps of 16 show each of 183 rows 3.5 times
    said = page.split("<!-- begin truth -->")[1].split("<!-- end truth -->")[0]
    assert "tiny with seed 1: " in said
    members = page.split("<!-- begin truth-members -->")[1].split("<!-- end truth-members -->")[0]
    for kind in KINDS:
        assert f"| tiny | 1 | {kind} | 1 |" in members
    # a second run finds all of it in the cache, and says what is not there
    assert main([*asked[:3], "--cases", "tiny", "other", "--seeds", "1", "--only", "noise_norm", "--cached"]) == 0
    assert "model is not trained: other with seed 1" in (tmp_path / "truth.md").read_text()


@pytest.mark.parametrize(("steps", "understood"), [(1, False), (200, True)])
def test_a_model_that_an_audit_would_refuse_is_named(steps, understood, tmp_path):
    """Of a network with its initial weights no image comes out: that says nothing about memorization."""
    setup = replace(TINY, recipe=Recipe(steps=steps), altered=())
    subject = Subject.of(train_or_load(setup, 1, tmp_path, tmp_path, print))
    assert is_understood(subject) is understood
    (said,) = reproduction_sentences(Bench([], [subject]))
    assert said.endswith("; an audit would refuse this model: its training broke down.") is not understood


def test_altered_families_have_every_kind_at_every_number_of_copies():
    (altered,) = (setup for setup in WORLD if setup.altered)
    assert all(number % len(altered.altered) == 0 for number, _ in altered.planting)


def test_a_model_of_latents_and_one_of_pixels_are_trained_on_the_same_images():
    known = {setup.name: setup for setup in WORLD}
    pixels, latents = known["photos-exact"], known["photos-latent"]
    same = ("file", "trained", "planting", "plain", "held_out", "variation", "altered")
    assert [getattr(pixels, name) for name in same] == [getattr(latents, name) for name in same]
