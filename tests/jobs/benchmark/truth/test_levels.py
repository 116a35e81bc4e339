"""Noise levels one by one, and latents beside pixels, on tiny models of the same images."""

from dataclasses import replace

import numpy as np
import pytest

from jobs.benchmark.__main__ import main
from jobs.benchmark.detection.suite import Setup
from jobs.benchmark.truth import levels, world
from jobs.benchmark.truth.training import Autoencoder
from tests.support.measured_pages import headings
from volgrowth.analysis.verification.proof import Reproduced
from volgrowth.demo.training import Recipe

PIXELS = Setup("tiny", None, 60, ((3, 20),), Recipe((8, 8), 30, 8), plain=10, held_out=90, samples=20)
LATENT = replace(PIXELS, name="latent", latent=Autoencoder((8, 8), recipe=Recipe(steps=3, batch=4)))


@pytest.fixture
def reproduced(monkeypatch):
    """Lets the planted images count as reproduced, which these models are too small for."""
    monkeypatch.setattr("jobs.benchmark.detection.suite.find_reproduced", planted)


def planted(samples, images, holdout, family):
    copies = [int((family == number).sum()) for number in range(family.max() + 1)]
    return Reproduced(np.array(copies), np.zeros(len(holdout), int), 2)


def test_the_command_fills_the_page(tmp_path, monkeypatch, reproduced):
    monkeypatch.setattr(world, "WORLD", (PIXELS, LATENT))
    monkeypatch.setattr(levels, "LEVELS", (0.1, 0.5))
    asked = ["levels", "--output", str(tmp_path), "--cases", "tiny", "latent", "--seeds", "1"]
    assert main(asked) == 0
    page = (tmp_path / "truth.md").read_text()
    assert "- latent with seed 1: noise norm finds most at level 0." in page
    assert headings(page, "levels-table")[:3] == ["case", "seed", "level"]
    assert "| 1 | growth |" in page
    assert page.count("| tiny | 1 | 0.") == 2
    assert main([*asked[:3], "--cases", "tiny", "--seeds", "2", "--cached"]) == 0
    assert "its model is not trained: tiny with seed 2" in (tmp_path / "truth.md").read_text()
