"""Text from elsewhere on terminals and in logs: it can be read, and it does nothing."""

import io
import sys

import pytest

from volgrowth.plain import plain, plain_lines, print_plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("safe\rrm", r"safe\rrm"),
        ("two\nlines\u2028three", r"two\nlines\u2028three"),
        ("gnp.\u202eexe", r"gnp.\u202eexe"),
        ("lone \udce9", r"lone \udce9"),
        ("\x9b31m", r"\x9b31m"),
        ("née 図 🎈 = fine: a::b", "née 図 🎈 = fine: a::b"),
        ("\N{WOMAN}\u200d\N{ROCKET}", "\N{WOMAN}\u200d\N{ROCKET}"),
    ],
)
def test_hidden_characters_are_spelled_and_others_stay(text, shown):
    assert plain(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("::error::pwned", r"\x3a:error::pwned"),
        ("row 3\n  ::set-output name=a::b", "row 3\n  \\x3a:set-output name=a::b"),
        ("x ##[error]pwned", r"x \x23#[error]pwned"),
        ("##vso[task.setvariable]", r"\x23#vso[task.setvariable]"),
        ("##teamcity[buildStop]", r"\x23#teamcity[buildStop]"),
        ("a::b\n### heading [x]\n|--:|", "a::b\n### heading [x]\n|--:|"),
    ],
)
def test_commands_of_ci_systems_are_broken_and_their_like_stays(text, shown):
    assert plain_lines(text) == shown


def test_a_stream_that_lacks_a_character_gets_its_escape(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    print_plain("née 🎈\x1b")
    assert stream.buffer.getvalue() == rb"n\xe9e \U0001f388\x1b" + b"\n"
