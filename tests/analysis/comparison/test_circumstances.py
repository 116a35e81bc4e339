"""`diff` refuses growth of other flows, and names other settings and other samples."""

from typing import Any

import numpy as np
import pytest

from tests.analysis.comparison.test_changes import audit, held_out, refused, unchanged
from volgrowth.analysis.comparison.comparing import compare_audits
from volgrowth.audit.output.result import Audit

PIXELS = {"rows": [3], "samples": 200, "distance": "pixels"}
CLASSES, CAPTIONS = {"class_column": "label"}, {"caption_column": "text"}


def pair(one: dict[str, Any], other: dict[str, Any]) -> tuple[Audit, Audit]:
    """Audits of the same images with settings of their own."""
    random = np.random.default_rng(12)
    before, after = unchanged(random, 100)
    held_a, held_b = held_out(random)
    return audit("a", range(100), before, held_a, **one), audit("b", range(100), after, held_b, **other)


def warned(one: Audit, other: Audit) -> list[str]:
    """All warnings but the one that so few images cannot show a change."""
    return [said for said in compare_audits(one, other).warnings if not said.startswith("With 400 images")]


@pytest.mark.parametrize("given", [CLASSES, CAPTIONS])
def test_growth_under_conditions_is_not_compared_with_growth_without(given: dict[str, Any]) -> None:
    under = f"under {'classes' if given is CLASSES else 'captions'}"
    said = refused(*pair(given, {}))
    assert f"growth of different flows ({under} in /nowhere/a, without conditions in /nowhere/b)" in said
    assert f"(without conditions in /nowhere/a, {under} in /nowhere/b)" in refused(*pair({}, given))
    assert warned(*pair(given, given)) == []


def test_columns_of_another_name_are_a_note() -> None:
    """Another data set may name its classes otherwise."""
    (said,) = warned(*pair(CLASSES, {"class_column": "digit"}))
    assert "The classes are those of column label in A and of column digit in B: " in said


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"dtype": "bfloat16"}, "(dtype is float32 in A and bfloat16 in B)"),
        ({"embedding_column": "clip"}, "(embedding_column is None in A and clip in B; embedding_similarity is None in"),
    ],
)
def test_other_settings_are_a_note(setting: dict[str, Any], words: str) -> None:
    (said,) = warned(*pair({}, setting))
    assert said.startswith(f"Settings differ {words}")
    assert warned(*pair(setting, setting)) == []


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (PIXELS, None, "A was verified by samples and B was not: an image may be found in A for that reason alone."),
        (None, PIXELS, "B was verified by samples and A was not: an image may be found in B for that reason alone."),
        (
            PIXELS,
            {**PIXELS, "samples": 1500},
            "A was verified with 200 samples by --distance pixels, and B with 1,500 samples by --distance pixels: ",
        ),
        ({"rows": [3], "samples": 200}, {**PIXELS, "distance": "perceptual"}, "B with 200 samples by --distance perc"),
    ],
)
def test_other_samples_are_a_note(before: Any, after: Any, words: str) -> None:
    """An audit of an older version says no distance: it knew pixels alone."""
    one, other = pair({}, {})
    one.summary["verification"], other.summary["verification"] = before, after
    (said,) = warned(one, other)
    assert words in said
    assert said.endswith("`became` and `ceased` go by what was found so.")
    other.summary["verification"] = before
    assert warned(one, other) == []


def test_samples_under_other_guidance_are_a_note() -> None:
    """Growth is that of the flow without guidance; samples are drawn with it."""
    one, other = pair(CLASSES, {**CLASSES, "guidance": 7.5})
    assert warned(one, other) == []
    one.summary["verification"] = other.summary["verification"] = PIXELS
    (said,) = warned(one, other)
    assert "B with 200 samples under guidance 7.5 by --distance pixels: " in said
