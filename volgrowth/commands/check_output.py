"""`volgrowth check-output`: verify every file of a finished audit."""

from volgrowth.audit.output.checking import CheckedOutput, verify_files
from volgrowth.audit.output.manifest import HOLDOUT_FOLDER, SCORES_FOLDER
from volgrowth.plain import plain
from volgrowth.storage.store import Store

SHOWN = 5


def check_output(output: str) -> CheckedOutput:
    """Read every file of an audit's output, and compare it with its digest and with the files it was made from.

    Args:
        output: folder or URL of the audit.

    Returns:
        The names of the files that are right, that are not, and that volgrowth did not write.

    Raises:
        OutputError: there is no audit, its manifest is damaged, or the store cannot be read.
    """
    return verify_files(Store(output))


def verified_lines(found: CheckedOutput) -> list[str]:
    """Return what `volgrowth check-output` prints of the files that are right, and of those that it does not know."""
    rows = {"scores": found.rows.get(SCORES_FOLDER), "held-out scores": found.rows.get(HOLDOUT_FOLDER)}
    counted = " and ".join(f"{count:,} rows of {name}" for name, count in rows.items() if count)
    lines = [f"verified {len(found.verified):,} files of {found.url}" + (f", {counted}" if counted else "")]
    if found.unsealed:
        lines.append(
            f"{len(found.unsealed):,} of them carry no digest, since an older version wrote them: they can be read and "
            f"fit each other, and a changed number in them would not be seen"
        )
    if found.unknown:
        more = f" and {len(found.unknown) - SHOWN} more" if len(found.unknown) > SHOWN else ""
        lines.append(f"not written by volgrowth, and not verified: {', '.join(found.unknown[:SHOWN])}{more}")
    return lines


def bad_lines(found: CheckedOutput) -> list[str]:
    """Return a line for each file that is not right: what is wrong with it, and what makes it again."""
    return [plain(f"{bad.name}: {bad.why}; {bad.fix}") for bad in found.bad]
