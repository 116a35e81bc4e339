"""Text files with which users name images to a command."""

from pathlib import Path

from volgrowth.errors import UsageError


def read_ids(file: Path, option: str) -> frozenset[str]:
    """Read ids or sources, one a line: it ends at a line feed, with or without a carriage return before it."""
    try:
        lines = file.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{option} {file} cannot be read ({error}): expected a text file, one id a line") from None
    return frozenset(line.removesuffix("\r") for line in lines) - {""}
