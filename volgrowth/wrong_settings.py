"""Sentences for settings that are unknown or have a wrong value: what was given, what is allowed, what was meant."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

_BOUNDS = {
    "greater_than_equal": ("ge", "{} or more"),
    "greater_than": ("gt", "above {}"),
    "less_than_equal": ("le", "at most {}"),
    "less_than": ("lt", "below {}"),
}
# what a value must be, by how the type of pydantic's error begins
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": "settings by name",
    "model": "settings by name",
}


def wrong_setting(problem: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the sentence for one of pydantic's errors, in none of pydantic's words.

    Args:
        problem: an entry of `ValidationError.errors()`.
        known: settings by name for each preset, and for the audit itself under the empty name.
    """
    kind, given = problem["type"], problem["input"]
    parts = [str(part) for part in problem["loc"]]
    preset = next((part for part in parts if part in known), "")
    where = ".".join(part for part in parts if part not in known)
    if kind == "missing":
        return f"setting {where} is missing"
    if kind == "extra_forbidden":
        return _unknown(where, preset, known)
    if kind == "union_tag_invalid":
        return f"setting {where}.preset: expected {nearest_of(str(problem['ctx']['tag']), [n for n in known if n])}"
    if kind == "value_error":
        return f"setting {where or 'settings'}: {problem['ctx']['error']}" + (f", got {given!r}" if where else "")
    if kind == "literal_error":
        allowed = [word.strip("'") for word in problem["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        return f"setting {where}: expected {nearest_of(given, allowed)}"
    return f"setting {where}: {wrong_value(problem)}"


def nearest_of(given: Any, allowed: Iterable[str]) -> str:
    """Return the allowed words, what was given, and the allowed word that is nearest to it, if one is near."""
    allowed = list(allowed)
    some = f"{', '.join(allowed[:-1])} or {allowed[-1]}" if len(allowed) > 1 else "".join(allowed)
    near = get_close_matches(str(given), allowed, 1, 0.5)
    return f"{some}, got {given!r}" + (f" (did you mean {near[0]}?)" if near else "")


def _unknown(where: str, preset: str, known: Mapping[str, Mapping[str, Any]]) -> str:
    """Say that there is no such setting, and which are near or of another preset."""
    *above, name = where.split(".")
    here = [each for each in known[preset] if each != "preset"]
    near = get_close_matches(name, here, 3, 0.6)
    others = [other for other, names in known.items() if other and other != preset and name in names]
    said = f"setting {where} is unknown"
    if preset and others:
        said += f" to preset {preset}: preset {' and '.join(others)} has it"
    elif near:
        said += f": did you mean {' or '.join('.'.join([*above, each]) for each in near)}?"
    elif not preset and any(name in names for names in known.values()):
        said += f": did you mean measure.{name}?"
    else:
        said += ":"
    return f"{said} The settings here are {', '.join(here)}".replace(": The", ": the")


def wrong_value(problem: Mapping[str, Any]) -> str:
    """Say what was expected in place of a value, and what was given; `problem` as in `wrong_setting`."""
    return f"expected {_expected(problem)}, got {problem['input']!r}"


def _expected(problem: Mapping[str, Any]) -> str:
    kind, about = problem["type"], problem.get("ctx", {})
    if kind in _BOUNDS:
        name, said = _BOUNDS[kind]
        return said.format(f"{about[name]:g}" if isinstance(about[name], float) else about[name])
    if kind in ("too_short", "too_long"):
        least = kind == "too_short"
        return f"{'at least' if least else 'at most'} {about['min_length' if least else 'max_length']} values"
    return next((said for start, said in _KINDS.items() if kind.startswith(start)), "another value")
