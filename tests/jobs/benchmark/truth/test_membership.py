"""Members of overfit models: what is audited, what is calibrated on, and which share of flags is false."""

from dataclasses import replace

import numpy as np
import pytest

from jobs.benchmark.__main__ import main
from jobs.benchmark.truth import membership
from jobs.benchmark.truth.membership import CALIBRATING, MEMBERS, ONCE, Members, _row, false_discoveries
from volgrowth.demo.training import Recipe


def test_every_image_is_trained_on_once_and_degrees_differ_in_passes_alone(tmp_path):
    case, longest = (setup.case(tmp_path, 1) for setup in (ONCE[0], ONCE[-1]))
    assert case.copies.tolist() == [1] * MEMBERS
    assert (case.train == longest.train).all()
    assert len(case.holdout) > CALIBRATING + 300
    passes = [setup.recipe.steps * setup.recipe.batch / MEMBERS for setup in ONCE]
    assert np.allclose(np.array(passes) / passes[0], [1, 3, 10, 30], rtol=0.01)


def test_innocent_p_values_keep_the_promise_and_those_of_an_overfit_model_break_it():
    even = (np.arange(200) + 0.5) / 200
    flagged, share = false_discoveries(even)
    assert flagged == round(20 * share / (1 - share))
    assert share <= 0.1
    assert false_discoveries(even / 100)[1] > 0.5
    assert false_discoveries(np.ones(5)) == (0, 0.0)


def test_a_row_is_the_mean_over_models_and_leaves_out_those_without_members():
    some, none = np.array([2.0, 1.0]), np.empty(0)
    parts = ("growth", "loss", "noise_norm")
    known = Members(3, (0.1, 0.3), dict.fromkeys(parts, (some, -some)), (some, -some), (some / 1e4, some / 4), True)
    gone = Members(200, (0.0, 0.5), dict.fromkeys(parts, (none, some)), (none, some), (none, some / 4), False)
    row = _row(ONCE[1], [known, gone])
    assert (row["evidence, AUROC"], row["loss, held out"], row["reproduced"]) == ("1.00", "0.400", "102")
    assert row["p below 0.001, %"] == "100.0"
    assert (row["trained on"], row["the audit warns"]) == ("153 passes", "1 of 2")


@pytest.mark.slow
def test_the_command_trains_and_fills_the_page(tmp_path, monkeypatch):
    small = replace(ONCE[0], name="digits-once-small", recipe=Recipe((8, 8), 3, 4), samples=4)
    monkeypatch.setattr(membership, "ONCE", (small,))
    asked = ["membership", "--output", str(tmp_path), "--seeds", "1"]
    assert main([*asked, "--cached"]) == 0
    assert "its model is not trained: digits-once-small with seed 1" in (tmp_path / "truth.md").read_text()
    assert main(asked) == 0
    page = (tmp_path / "truth.md").read_text()
    assert "| not at all |" in page
    assert main([*asked, "--cases", "nonsense"]) == 2
