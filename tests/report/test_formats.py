import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volgrowth.report import formats


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_missing_is_a_dash(value: float | None) -> None:
    for shown in (formats.number, formats.score, formats.signed, formats.percent, formats.duration):
        assert shown(value) == formats.MISSING
    assert formats.finalize(value) == formats.MISSING


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0.000"),
        (12.345, "12.35"),
        (-0.5, "−0.500"),
        (1234.5, "1,234"),
        (1e-5, "1.0e−05"),
        (151.26, "151.3"),
    ],
)
def test_scores(value: float, shown: str) -> None:
    assert formats.score(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0%"), (1.0, "100%"), (0.9999, "99.9%"), (0.83, "83%"), (0.004, "0.4%"), (0.0001, "<0.1%")],
)
def test_shares(value: float, shown: str) -> None:
    assert formats.percent(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("2026-11-22T01:02:03Z", "22 November 2026, 01:02 UTC"),
        ("2026-11-22T01:02:03+02:00", "21 November 2026, 23:02 UTC"),
        ("<b>", "<b>"),
        (None, formats.MISSING),
    ],
)
def test_moments(value: str | None, shown: str) -> None:
    assert formats.moment(value) == shown


def test_emoji_and_persian_keep_their_joiners() -> None:
    for text in ("👩\u200d🚀", "می\u200cخواهم", "日本語"):
        assert formats.visible(text) == text


def test_long_strings_are_cut_in_the_middle() -> None:
    shown = formats.visible("a" * 5000 + "z")
    assert len(shown) < 450
    assert shown[0] == "a"
    assert shown[-1] == "z"


@given(st.text())
def test_untrusted_text_adds_no_markup(text: str) -> None:
    inner = str(formats.untrusted(text)).removeprefix("<bdi>").removesuffix("</bdi>")
    assert not set("<>\"'\0\u202e") & set(inner)
