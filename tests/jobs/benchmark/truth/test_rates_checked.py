"""Rates of generation beside the hits of samples: the command on a tiny model."""

import numpy as np
import pytest

from jobs.benchmark.__main__ import main
from jobs.benchmark.detection.suite import Trained
from jobs.benchmark.truth import rates_checked, world
from jobs.benchmark.truth.rates_checked import Checked, check_rates
from tests.jobs.benchmark.truth.test_world import TINY
from volgrowth.analysis.verification.proof import Reproduced
from volgrowth.numerics.generation_rate import GenerationRate


def test_the_command_rates_images_from_the_most_hits_to_the_fewest(tmp_path, monkeypatch):
    """The tiny model reproduces nothing, so that the hits are made up and no rate is measurable."""
    rated = list[int]()

    def made_up(trained: Trained) -> Reproduced:
        hits = np.zeros(len(trained.case.names), int)
        hits[[3, 5, 8]] = 1, 30, 7
        return Reproduced(hits, np.zeros(len(trained.case.holdout), int), 6)

    def counted(trained, families):
        for family, found in rate_families(trained, families):
            rated.append(family)
            yield family, found

    rate_families = rates_checked.rate_families
    monkeypatch.setattr(world, "WORLD", (TINY,))
    monkeypatch.setattr(Trained, "truth", made_up)
    monkeypatch.setattr(rates_checked, "rate_families", counted)
    monkeypatch.setattr(rates_checked, "STEPS", 10)
    asked = ["rates", "--output", str(tmp_path), "--cases", "tiny", "--seeds", "1", "--images", "2"]
    assert main([*asked, "--cached"]) == 0
    assert "model is not trained: tiny with seed 1." in (tmp_path / "truth.md").read_text()
    assert main(asked) == 0
    assert (
        "tiny with seed 1: of 2 images that samples hit the rates of 0 are measurable."
        in (tmp_path / "truth.md").read_text()
    )
    assert rated == [5, 3]
    assert main([*asked, "--cached"]) == 0
    assert rated == [5, 3]  # a second run takes them from the cache
    assert "| tiny | 1 | 2 | 1 to 30 of 60 | 0 |" in (tmp_path / "truth.md").read_text()


def test_the_row_says_what_was_found(tmp_path, monkeypatch):
    nan = float("nan")
    found = [
        Checked(0, 30, GenerationRate(0.02, 0.01, 0.04, 64, 20, 15.0, 1000)),
        Checked(1, 10, GenerationRate(0.01, 0.005, 0.02, 64, 20, 15.0, 3000)),
        Checked(2, 1, GenerationRate(nan, nan, nan, 64, 2, 2.0, 2000)),
    ]

    class Made:
        samples, setup, seed = np.zeros((1000, 1)), TINY, 1

    monkeypatch.setattr(rates_checked, "models_of", lambda *_, **__: [Made()])
    monkeypatch.setattr(rates_checked, "rate_or_load", lambda *_: found)
    outcome = check_rates([TINY], [1], tmp_path, tmp_path, 3)
    (row,) = outcome.tables["table"]
    assert row["rate over share of hits"] == "0.67 to 1.00"
    assert (row["images"], row["measurable"], row["evaluations an image"]) == (3, 2, 2000)
    assert "the rates of 2 are measurable, 2 of them within a factor of 3 of" in outcome.sentences[0]
    assert found[1].ratio(1000) == pytest.approx(1.0)
