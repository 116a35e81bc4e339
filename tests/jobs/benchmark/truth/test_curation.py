"""What curation does: the training sets of the actions, and the command on a tiny case."""

from dataclasses import replace

import numpy as np
import pytest

from jobs.benchmark.__main__ import main
from jobs.benchmark.truth import curation, world
from jobs.benchmark.truth.curation import curated_sets
from jobs.benchmark.truth.training import Autoencoder
from tests.jobs.benchmark.truth.test_world import TINY
from tests.support.measured_pages import headings
from volgrowth.demo.cases import digit_images, plant_copies
from volgrowth.demo.training import Recipe

LATENT = replace(TINY, latent=Autoencoder((8, 8), recipe=Recipe(steps=3, batch=4)))


def test_each_action_makes_its_training_set_and_the_control_is_as_small_as_the_deduplicated_one():
    case = plant_copies(digit_images()[:120], 0, trained=40, planting=((2, 10), (3, 4)), plain=6, prefix="digit")
    flagged = np.isin(np.arange(len(case.names)), [0, 3, 30])  # ten copies, four copies, one
    dedupe, downweight, drop, control = curated_sets(case, flagged, 0)
    left = np.bincount(case.family[dedupe.rows], minlength=len(case.names))
    assert (left == np.where(flagged, 1, case.copies)).all()
    assert len(control.rows) == len(dedupe.rows) == len(case.train) - 9 - 3
    shares = np.bincount(case.family[downweight.rows], downweight.weights)
    np.testing.assert_allclose(shares, np.where(flagged, 1, case.copies))
    assert not np.isin(np.flatnonzero(flagged), case.family[drop.rows]).any()
    assert len(drop.rows) == len(case.train) - 10 - 4 - 1
    assert len({each.name for each in (dedupe, downweight, drop, control)}) == 4


@pytest.mark.parametrize("case", [TINY, LATENT], ids=["pixels", "latents"])
def test_the_command_trains_again_and_counts_what_is_left(case, tmp_path, monkeypatch):
    def flag_planted(subject, measure, seed):
        return {"q_value": np.where(subject.planted, 0.0, 1.0)}

    monkeypatch.setattr(world, "WORLD", (case,))
    monkeypatch.setattr(curation, "audit_case", flag_planted)
    asked = ["curation", "--output", str(tmp_path), "--cases", "tiny", "--seeds", "1"]
    assert main([*asked, "--cached"]) == 0
    assert "model is not trained: tiny with seed 1." in (tmp_path / "truth.md").read_text()
    assert main(asked) == 0
    page = (tmp_path / "truth.md").read_text()
    assert headings(page, "curation-table")[:4] == ["case", "seed", "trained on", "rows"]
    assert "| tiny | 1 | the whole set | 183 | 60 |" in page
    for kind, rows in (("`dedupe`", 50), ("`downweight`", 183), ("`drop`", 43), ("as many rows", 50)):
        assert any(line.startswith(f"| tiny | 1 | {kind}") and f"| {rows} | 60 |" in line for line in page.splitlines())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "models").rglob("*.safetensors")}
    assert main([*asked, "--cached"]) == 0  # from the cache
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "models").rglob("*.safetensors")}
