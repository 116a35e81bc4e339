"""The settings that suit a GPU: what was left open changes, what was given stays."""

from typing import Any

import pytest

from volgrowth.audit.workers.suited import suited_to_gpu
from volgrowth.config import AuditConfig, PaperMeasure

CASES: dict[str, tuple[dict[str, Any], str, int | None, str | None]] = {
    "nothing given": ({}, "bfloat16", None, None),
    "precision given": ({"dtype": "float32"}, "float32", None, None),
    "batch given": ({"batch_size": 64}, "bfloat16", 64, None),
    "paper": ({"measure": {"preset": "paper"}}, "bfloat16", None, "jvp"),
    "paper in float32": ({"measure": {"preset": "paper"}, "dtype": "float32"}, "float32", None, "jvp"),
    "differences": ({"measure": {"preset": "paper", "derivative": "difference"}}, "float32", None, "difference"),
    "differences in float64": (
        {"measure": {"preset": "paper", "derivative": "difference"}, "dtype": "float64"},
        "float64",
        None,
        "difference",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_was_left_open_suits_a_gpu(case: str) -> None:
    given, dtype, batch, derivative = CASES[case]
    suited = suited_to_gpu(AuditConfig.build(model="m", data="d", output="o", **given))
    assert (suited.dtype, suited.batch_size) == (dtype, batch)
    assert (suited.measure.derivative if isinstance(suited.measure, PaperMeasure) else None) == derivative
    again = AuditConfig.build(**suited.model_dump())  # the settings are valid together, and all given now
    assert suited_to_gpu(again) == again
    assert again.digest == suited.digest
