"""The evidence by each rule for units and weights: the last one is the product's, the others what it was before."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from jobs.benchmark.__main__ import main
from jobs.benchmark.truth import levels, world
from jobs.benchmark.truth.units import judge_by_rules
from tests.jobs.benchmark.truth.test_levels import PIXELS, planted
from tests.support.measured_pages import headings
from volgrowth.analysis.calibration.evidence import judge_images
from volgrowth.analysis.calibration.expected_scores import ScoredImages

MEMORIZED = 15


def scores(count, seed, memorized=0, heavy=False):
    """A part that finds the memorized images, and one in which, if it is heavy, some of all stand out for nothing."""
    random = np.random.default_rng(seed)
    features, content = random.uniform(size=(count, 6)), random.integers(2**63, size=count).astype(np.uint64)
    loss = features[:, 0] + random.normal(size=count)
    norm = random.standard_t(2, size=count) if heavy else random.normal(size=count)
    loss[:memorized] += 7
    return {name: ScoredImages(features, score, content) for name, score in (("noise_norm", norm), ("loss", loss))}


@pytest.mark.parametrize("heavy", [False, True])
def test_the_last_rule_is_the_one_of_an_audit(heavy):
    audited, holdout = scores(500, 1, MEMORIZED, heavy), scores(1000, 2, 0, heavy)
    found = judge_by_rules({name: (audited[name], holdout[name]) for name in audited})
    judged = judge_images(audited, holdout)
    assert judged is not None
    assert_allclose(found["evidence by half"], judged.evidence, rtol=1e-9)
    by_spread, by_tail = (found[f"evidence by {unit}"] for unit in ("spread", "tail"))
    above = [(each[:MEMORIZED, None] > each[MEMORIZED:]).mean() for each in (by_spread, by_tail)]
    if heavy:
        assert found["noise_norm unit"] > 1.5
        assert above[1] > above[0] + 0.002
    else:
        assert found["noise_norm unit"] < 1.2
        assert above[1] == pytest.approx(above[0], abs=0.001)
        for name in ("spread", "tail", "half"):
            assert (found[f"q_value by {name}"][:MEMORIZED] <= 0.1).mean() > 0.8


def test_the_page_has_all_rules(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.benchmark.detection.suite.find_reproduced", planted)
    monkeypatch.setattr(world, "WORLD", (PIXELS,))
    monkeypatch.setattr(levels, "LEVELS", (0.5,))
    assert main(["levels", "--output", str(tmp_path), "--cases", "tiny", "--seeds", "1"]) == 0
    columns = headings((tmp_path / "truth.md").read_text(), "levels-units")
    assert columns[:4] == ["case", "seed", "noise norm: unit in spreads", "loss: unit in spreads"]
    assert "by the tail, half of the noise norm: power at 10%" in columns
