"""A comparison of two audits in words, as `volgrowth diff` prints it."""

from collections.abc import Iterator
from textwrap import wrap

from volgrowth.analysis.comparison.changes import CHANGED, LISTED, ChangeVerdict, Comparison
from volgrowth.plain import plain

# most characters of an id that are shown: the rest of a hash tells nothing more
ID_WIDTH = 28

# characters of a line of prose
WIDTH = 110

MEANING = {
    ChangeVerdict.BECAME: "memorized: a significant rise, flagged in B and not in A",
    ChangeVerdict.CEASED: "to be memorized: a significant fall, flagged in A and not in B",
    ChangeVerdict.ROSE: "significantly, but are not newly flagged",
    ChangeVerdict.FELL: "significantly, but did not lose a flag",
    ChangeVerdict.SAME: "no significant change",
    ChangeVerdict.NOT_JUDGED: "no score, or outside the calibration's range, in A or B",
}


def comparison_text(comparison: Comparison) -> str:
    """Write counts, the rate they promise, and up to `LISTED` images of each kind of change, for a terminal."""
    notes = [line for warning in comparison.warnings for line in wrap(f"Note: {warning}", WIDTH)]
    blocks = [_counts(comparison), wrap(_promise(comparison), WIDTH), notes]
    blocks += [list(_images(comparison, verdict)) for verdict in CHANGED]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _counts(comparison: Comparison) -> list[str]:
    (only_a, only_b), (flagged_a, flagged_b) = comparison.only, comparison.only_flagged
    counts = [f"  {number:>9,}  {_name(v):<10} {MEANING[v]}" for v, number in comparison.counts.items()]
    return [
        f"A: {comparison.names[0]}",
        f"B: {comparison.names[1]}",
        f"{comparison.pictures:,} distinct images are in both and are compared:",
        *counts,
        f"{only_a:,} are only in A, of which {flagged_a:,} flagged there; {only_b:,} only in B, {flagged_b:,} flagged.",
    ]


def _promise(comparison: Comparison) -> str:
    if comparison.null == "held-out":
        null = f"the {comparison.null_rows:,} held-out images that both audits share and neither model was trained on"
    else:
        null = f"the mirror image of the {comparison.null_rows:,} changes themselves (an assumption: see the note)"
    said = [f"Changes are compared with {null}."]
    if found := comparison.significant:
        said.append(
            f"Of the {found:,} significant ones at most {comparison.fdr:.1%} ({comparison.fdr * found:.1f}) are "
            f"expected to be chance; that holds for all four kinds together, not for each alone."
        )
    return " ".join([*said, "z is excess growth in units of its own audit's residual spread."])


def _images(comparison: Comparison, verdict: ChangeVerdict) -> Iterator[str]:
    """Yield the lines that list the pictures with a verdict, the most certain first, each by its largest change."""
    listed, count = comparison.listed[verdict].to_pylist(), comparison.counts[verdict]
    if not listed:
        return
    of = f"{count:,} images" if len(listed) < count else ""
    yield f"{_name(verdict)}" + (f" (the first {LISTED} of {of}; --table FILE has all)" if of else "")
    yield f"  {'image':<{ID_WIDTH}}  {'row':>18}  {'copies':>14}  {'z':>18}  {'q':>8}"
    for image in listed:
        name = plain(image["image_id"])
        name = name if len(name) <= ID_WIDTH else f"{name[: ID_WIDTH - 1]}…"
        row, copies = (f"{image[f'{n}_a']} -> {image[f'{n}_b']}" for n in ("row", "copies"))
        z = f"{image['z_a']:.2f} -> {image['z_b']:.2f}"
        yield f"  {name:<{ID_WIDTH}}  {row:>18}  {copies:>14}  {z:>18}  {image['q_value']:>8.2g}"


def _name(verdict: ChangeVerdict) -> str:
    return verdict.value.replace("_", " ")
