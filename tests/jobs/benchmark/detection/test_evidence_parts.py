"""Sums of parts: the one of the presets is the evidence of an audit, and one that finds nothing adds nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
from numpy.testing import assert_allclose

from jobs.benchmark.__main__ import main
from jobs.benchmark.detection.evidence_parts import FURTHER, PARTS, SUMS, judge_sums
from tests.jobs.benchmark.truth.test_levels import PIXELS, planted
from tests.jobs.benchmark.truth.test_units import MEMORIZED, scores
from tests.support.measured_pages import headings
from volgrowth.analysis.calibration.evidence import judge_images

EVIDENCE = "half of the noise norm and pair: the evidence of `screen` and `standard`"


def test_the_sum_of_the_presets_is_the_evidence_of_an_audit() -> None:
    audited, holdout = scores(500, 1, MEMORIZED), scores(1000, 2)
    judged = judge_images(audited, holdout)
    assert judged is not None
    parts = {name: (audited[name], holdout[name]) for name in audited}
    for seed, name in enumerate(("growth", FURTHER)):  # parts that find nothing, of the same images
        blind, held = scores(500, 10 + seed)["noise_norm"].score, scores(1000, 20 + seed)["noise_norm"].score
        parts[name] = replace(audited["loss"], score=blind), replace(holdout["loss"], score=held)
    found = judge_sums({name: parts[name] for name in PARTS})
    assert_allclose(found[f"evidence, {EVIDENCE}"], judged.evidence, rtol=1e-9)
    assert len(found) == 2 * (len(SUMS) + 1)
    assert (found[f"q_value, {EVIDENCE}"][:MEMORIZED] <= 0.1).mean() > 0.8
    assert not (found["q_value, growth of one axis"] <= 0.1).any()


def test_the_page_has_cases_of_both_pages_and_says_what_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.benchmark.detection.suite.find_reproduced", planted)
    monkeypatch.setattr("jobs.benchmark.truth.world.WORLD", (PIXELS,))
    command = ["evidence", "--output", str(tmp_path), "--cases", "tiny", "--seeds", "1"]
    assert main([*command, "--cached"]) == 0
    assert "its model is not trained: tiny with seed 1" in (tmp_path / "detection.md").read_text()
    assert main(command) == 0
    page = (tmp_path / "detection.md").read_text()
    assert headings(page, "evidence-table") == [
        "evidence", "evaluations", "tiny", "lowest TPR at 1% FPR", "least lower quartile",
    ]  # fmt: skip
