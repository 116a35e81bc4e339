"""What makes the numbers of two audits differ beside their models and images: conditions, other settings, samples."""

from typing import Any

from volgrowth.audit.output.result import Audit
from volgrowth.errors import UsageError

Names = tuple[str, str]
"""What two audits are called in a sentence."""


def refuse_other_flows(a: Audit, b: Audit) -> None:
    """Refuse two audits whose growth is not of the same kind of flow.

    Raises:
        UsageError: it is under classes or captions in one of them, and not in the other.
    """
    kinds = _kind(a), _kind(b)
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"the audits measured growth of different flows ({_under(kinds[0])} in {a.store.url}, {_under(kinds[1])} "
            f"in {b.store.url}): audit one of them again as the other was, with or without --class-column or "
            f"--caption-column"
        )


def setting_notes(a: Audit, b: Audit, names: Names) -> list[str]:
    """Say which conditions and other settings differ, of those that change what is measured or counted."""
    kinds, columns = (_kind(a), _kind(b)), (_column(a), _column(b))
    said = []
    if kinds[0] != kinds[1]:
        said.append(
            f"Growth is measured {_under(kinds[0])} in {names[0]} and {_under(kinds[1])} in {names[1]}: their numbers "
            f"differ for that reason too."
        )
    elif columns[0] != columns[1]:
        said.append(
            f"The {kinds[0]} are those of column {columns[0]} in {names[0]} and of column {columns[1]} in {names[1]}: "
            f"where an image has others in one of them, its growth may differ for that reason alone."
        )
    settings = _settings(a), _settings(b)
    differ = [
        f"{name} is {value} in {names[0]} and {settings[1][name]} in {names[1]}"
        for name, value in settings[0].items()
        if value != settings[1][name]
    ]
    if differ:
        said.append(f"Settings differ ({'; '.join(differ)}): numbers may differ for that reason alone.")
    return said


def sample_note(a: Audit, b: Audit, names: Names) -> str | None:
    """Say that two audits were verified in different ways, or only one of them was; None if they are alike."""
    ways = _samples(a), _samples(b)
    if ways[0] == ways[1]:
        return None
    if None in ways:
        one, other = names if ways[0] else reversed(names)
        return (
            f"{one} was verified by samples and {other} was not: an image may be found in {one} for that reason alone. "
            f"Verify both with the same --samples and --distance, or neither."
        )
    return (
        f"{names[0]} was verified with {ways[0]}, and {names[1]} with {ways[1]}: samples may prove an image in one of "
        f"them for that reason alone. Verify both alike."
    )


def _kind(audit: Audit) -> str | None:
    """Return what an audit measured growth under: classes, captions, or nothing."""
    config = audit.frozen.config
    return "classes" if config.get("class_column") else "captions" if config.get("caption_column") else None


def _under(kind: str | None) -> str:
    return f"under {kind}" if kind else "without conditions"


def _column(audit: Audit) -> str | None:
    return audit.frozen.config.get("class_column") or audit.frozen.config.get("caption_column")


def _settings(audit: Audit) -> dict[str, Any]:
    """Return the settings that change scores, or which images are one, and that no other note names."""
    config = audit.frozen.config
    cascade, column = bool(config.get("cascade")), config.get("embedding_column")
    return {
        "dtype": config.get("dtype"),
        "cascade": cascade,
        "screen_share": config.get("screen_share") if cascade else None,
        "embedding_column": column,
        "embedding_similarity": config.get("embedding_similarity") if column else None,
    }


def _samples(audit: Audit) -> str | None:
    """Return how an audit was verified, in words; None if it was not."""
    proof = audit.summary.get("verification")
    if not proof:
        return None
    guidance = audit.frozen.config.get("guidance")
    under = f" under guidance {guidance:g}" if guidance is not None else ""
    return f"{proof['samples']:,} samples{under} by --distance {proof.get('distance', 'pixels')}"
