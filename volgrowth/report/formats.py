"""Values as text for a reader: a missing one becomes a dash, and a hostile string stays harmless text."""

import math
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

from volgrowth.credentials import redacted
from volgrowth.plain import is_hidden

MISSING = "–"
LONGEST = 400


def missing(value: Any) -> bool:
    """Return True if there is no value to show: None, NaN or infinity."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def finalize(value: Any) -> Any:
    """Replace a missing value by a dash. Jinja calls this on all it prints, so that no template shows None or NaN."""
    return MISSING if missing(value) else value


def number(value: float | None) -> str:
    """Write a count."""
    return MISSING if value is None or missing(value) else f"{round(value):,}"


def approximate(value: float | None) -> str:
    """Write an expected count; a small one keeps a decimal."""
    if value is None or missing(value) or value >= 10:
        return number(value)
    return f"{value:.1f}".removesuffix(".0") if value >= 0.05 else "none"


def rough(value: float | None) -> str:
    """Write an estimated count of one or more to two figures."""
    if value is None or missing(value) or value < 10:
        return MISSING if value is None or missing(value) else f"{value:.1f}".removesuffix(".0")
    return number(float(f"{value:.1e}"))


def score(value: float | None) -> str:
    """Write a measured quantity, to three or four figures."""
    if value is None or missing(value):
        return MISSING
    size = abs(value)
    if size and not 5e-4 <= size < 1e7:
        return f"{value:.1e}".replace("-", "−")
    decimals = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3
    return f"{value:,.{decimals}f}".replace("-", "−")


def signed(value: float | None) -> str:
    """Write a difference as `score` does, with its sign."""
    return f"+{score(value)}" if value is not None and not missing(value) and value > 0 else score(value)


def percent(value: float | None) -> str:
    """Write a share in [0, 1] in percent; a share below one is never rounded to 100%."""
    if value is None or missing(value):
        return MISSING
    if 0.995 <= value < 1 or 0 < value < 0.005:
        return f"{min(100 * value, 99.9):.1f}%" if value >= 0.0005 else "<0.1%"
    return f"{100 * value:.0f}%"


def moment(value: str | None) -> str:
    """Write an ISO time as a person would; leave any other string as it is."""
    try:
        when = datetime.fromisoformat(value or "")
    except ValueError:
        return value or MISSING
    when = when.astimezone(UTC) if when.tzinfo else when
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def duration(seconds: float | None) -> str:
    """Write seconds in the unit that a person would choose."""
    if seconds is None or missing(seconds):
        return MISSING
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def visible(value: Any, longest: int = LONGEST) -> str:
    """Return a string of unknown origin with every hidden character spelled out, and its middle cut out if it is long.

    Control characters and direction overrides can make a file name read as another one.
    """
    if missing(value):
        return MISSING
    text = redacted(str(value))
    if len(text) > longest:
        text = text[: longest // 2] + " … " + text[-longest // 2 :]
    return "".join(_spelled(character) for character in text)


def untrusted(value: Any, longest: int = LONGEST) -> Markup:
    """Return `visible` text as an HTML element of its own: right-to-left text cannot rearrange its neighbours."""
    return Markup("<bdi>") + escape(visible(value, longest)) + Markup("</bdi>")


def _spelled(character: str) -> str:
    return f"[U+{ord(character):04X}]" if is_hidden(character) else character


def plural(count: float | None, noun: str) -> str:
    """Write a count with its noun: `1 image`, `2 images`."""
    return f"{number(count)} {noun}" if count == 1 else f"{number(count)} {noun}s"
