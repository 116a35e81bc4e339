"""The commands that compare audits, for `volgrowth.cli`."""

from typing import Annotated

import typer

from volgrowth.options import option
from volgrowth.plain import print_plain


def diff(
    out_a: Annotated[str, typer.Argument(help="Output of a finished audit: the earlier checkpoint or data set.")],
    out_b: Annotated[str, typer.Argument(help="Output of the audit to compare it with.")],
    fdr: Annotated[float, option("False-discovery rate among all significant changes.")] = 0.1,
    table: Annotated[str | None, option("Parquet or CSV file or URL for the whole table, one row per image.")] = None,
) -> None:
    """Show which images became or ceased to be memorized from audit OUT_A to audit OUT_B.

    Example:

      volgrowth diff out-before out-after --table changes.parquet
    """
    from volgrowth.analysis.comparison.wording import comparison_text
    from volgrowth.commands.diff import describe_changes

    print_plain(comparison_text(describe_changes(out_a, out_b, fdr, table)))


def trend(
    outputs: Annotated[list[str], typer.Argument(help="Outputs of finished audits, in the order of the checkpoints.")],
    fdr: Annotated[float, option("An image is flagged if its q_value is at most this.")] = 0.1,
    page: Annotated[str, option("HTML file or URL for the page.")] = "trend.html",
) -> None:
    """Show how many images each of several checkpoints memorized, and how many were proven and new, on one page.

    Example:

      volgrowth trend out-10k out-20k out-40k --page trend.html
    """
    from volgrowth.commands.trend import trend_audits, trend_lines

    print_plain("\n".join([*trend_lines(trend_audits(outputs, page, fdr=fdr)), f"page: {page}"]))
