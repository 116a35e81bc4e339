"""Text for terminals, logs and continuous integration, in which a name from elsewhere can only be read, never act.

A file name may hold control characters (a terminal obeys them), direction overrides (it reads as another name), line
breaks, or a command of a CI system: GitHub obeys lines that begin with `::`, Azure and TeamCity `##vso[` and the like.
"""

import errno
import io
import os
import re
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any, TextIO

from volgrowth.credentials import redacted

# Joiners are format characters too, but part of how Persian or a family emoji is spelled.
_JOINERS = frozenset("\u200c\u200d")
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_COMMAND = re.compile(r"^(\s*):(?=:)|#(?=#\w*\[)", re.MULTILINE)


def is_hidden(character: str) -> bool:
    """Return whether a character shows nothing by itself: control, direction override, lone surrogate, line break."""
    return unicodedata.category(character) in _HIDDEN_CATEGORIES and character not in _JOINERS


def plain(text: str) -> str:
    """Return a text in one line, with hidden characters as escapes such as `\\x1b`, and without secrets of URLs."""
    text = redacted(text)
    return text if text.isascii() and text.isprintable() else "".join(map(_spelled, text))


def kind_of(value: object) -> str:
    """Return what a value is, with its article: `None`, `a str`, `an int`."""
    name = type(value).__name__
    return "None" if value is None else f"an {name}" if name[0] in "aeiouAEIO" else f"a {name}"


def plain_lines(text: str) -> str:
    """Return lines each of which is `plain` and no command of a CI system."""
    lines = "\n".join(plain(line) for line in text.split("\n"))
    return _COMMAND.sub(lambda match: f"{match[1] or ''}\\x{ord(match[0][-1]):02x}", lines)


def print_plain(text: str, *, error: bool = False) -> None:
    """Print lines as `plain_lines`, to stderr if it is an error, in the encoding that the stream has."""
    _print(plain_lines(text), sys.stderr if error else sys.stdout)


def print_warnings(warnings: Iterable[str]) -> None:
    """Print warnings to stderr, one a line."""
    for warning in warnings:
        print_plain(f"warning: {plain(warning)}", error=True)


def print_commands(commands: Iterable[str]) -> None:
    """Print commands that a CI system shall obey, each as one line, in which what others named is an argument."""
    for command in commands:
        _print(plain(command), sys.stdout)


def _print(text: str, stream: TextIO) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def keep_printing() -> None:
    """Have nothing that is printed change what this command does or its exit code.

    A reader may close its pipe, as `head` does, or a terminal may close: what is printed then is lost, and nothing
    else. A character that a terminal cannot show is spelled.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            raw = _LastingFile(stream.fileno(), "w", closefd=False)
            lasting = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=True)
            setattr(sys, name, lasting)


class _LastingFile(io.FileIO):
    """A file whose reader may go away: what is written after that is dropped."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return memoryview(data).nbytes


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode() if is_hidden(character) else character
