"""The commands that act on a finished audit, for `volgrowth.cli`: its report, samples of the model, and lists."""

from pathlib import Path
from typing import Annotated

import typer

from volgrowth.errors import UsageError
from volgrowth.exits import interruptible
from volgrowth.guard import KEPT
from volgrowth.options import EngineName, GpusPerWorker, LogTo, RayAddress, TrustOutput, Workers, option
from volgrowth.plain import print_plain, print_warnings


def report(
    output: Annotated[str, typer.Argument(help="Output of a finished audit.")],
    redact: Annotated[
        bool, option("Write report-redacted.html instead: without pictures, to be handed on.", "--redact")
    ] = False,
    trust_output: TrustOutput = False,
    log_to: LogTo = None,
) -> None:
    """Write report.html and its figures again from the tables of a finished audit.

    Example:

      volgrowth report out --redact
    """
    from volgrowth.audit.output.result import REDACTED_FILE, REPORT_FILE
    from volgrowth.commands.report import report_audit
    from volgrowth.commands.tracking import check_tracker, log_if_asked

    check_tracker(log_to)
    audit = report_audit(output, redact=redact, trust_output=trust_output)
    print_plain(audit.store.path(REDACTED_FILE if redact else REPORT_FILE))
    log_if_asked(audit, log_to, redact)


def verify(
    output: Annotated[str, typer.Argument(help="Output of a finished audit.")],
    samples: Annotated[int, option("Number of images to draw from the model; 2500 or more find most copies.")],
    stop_level: Annotated[
        float | None, option("Draw the samples again with a sampler whose last step starts at this noise level.")
    ] = None,
    rates: Annotated[
        bool, option("Also measure how often the model makes each flagged or proven image, however rare it is.")
    ] = False,
    rates_of: Annotated[Path | None, option("File of ids, one per line, whose rates are measured as well.")] = None,
    distance: Annotated[
        str, option("How samples are compared with images: pixels, or perceptual, which looks past light and detail.")
    ] = "pixels",
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    ray_address: RayAddress = None,
    engine: EngineName = None,
    trust_output: TrustOutput = False,
    log_to: LogTo = None,
) -> None:
    """Draw SAMPLES from the audited model, and see which training images they reproduce.

    Fills the column verified_hits of the findings, says how many of the flags are proved, and writes the report again.
    A later call with more samples keeps those drawn before.

    Example:

      volgrowth verify out --samples 5000 --rates
    """
    from volgrowth.commands.tracking import check_tracker, log_if_asked

    check_tracker(log_to)
    with interruptible(f"samples drawn are kept in {output}; the same command goes on"):
        from volgrowth.commands.id_files import read_ids
        from volgrowth.commands.verify import verify_audit
        from volgrowth.report.words import proof_sentences

        audit = verify_audit(
            output,
            samples,
            stop_level=stop_level,
            rates=rates,
            rates_of=read_ids(rates_of, "--rates-of") if rates_of else None,
            distance=distance,
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            ray_address=ray_address,
            engine=engine or "ray",
            trust_output=trust_output,
        )
    found = audit.summary["verification"]
    print_plain("\n".join([*proof_sentences(found), f"report: {audit.store.path('report.html')}"]))
    print_warnings(found["warnings"])
    log_if_asked(audit, log_to)


def curate(
    ctx: typer.Context,
    output: Annotated[str | None, typer.Argument(help="Output of a finished audit.")] = None,
    fdr: Annotated[float | None, option("Flag images whose q_value is at most this.")] = None,
    top_k: Annotated[int | None, option("Flag this many images, those highest in evidence.")] = None,
    max_score: Annotated[float | None, option("Flag images with more evidence than this.")] = None,
    action: Annotated[str | None, option("What to do with flagged images: drop (default), dedupe, downweight.")] = None,
    allow: Annotated[Path | None, option("File of ids or sources, one per line, of rows that always stay.")] = None,
    opt_out: Annotated[Path | None, option("File of ids or sources, one per line, of rows that always go.")] = None,
    list_: Annotated[
        str | None,
        option("The list, .csv or .parquet: written with --fdr, --top-k or --max-score, else read.", "--list"),
    ] = None,
    apply: Annotated[str | None, option("New folder or empty prefix (URL) to write the curated copy to.")] = None,
    indices: Annotated[
        bool, option("Apply the list as row numbers for `datasets` instead of a copy.", "--indices")
    ] = False,
    undo: Annotated[str | None, option("Remove this, which --apply wrote; give nothing else with it.")] = None,
    trust_output: TrustOutput = False,
    log_to: LogTo = None,
) -> None:
    """Decide what to do with each row, as a list that can be edited, and apply it to a copy of the data set.

    --fdr, --top-k or --max-score makes the list; without them it is read from --list. The data set itself is never
    changed.

    Examples:

      volgrowth curate out --fdr 0.1 --action dedupe --list list.csv

      volgrowth curate out --list list.csv --apply ./curated

      volgrowth curate --undo ./curated
    """
    from volgrowth.audit.output.result import open_audit
    from volgrowth.commands import curate as command
    from volgrowth.commands.tracking import check_tracker, log_if_asked

    if undo is not None:
        command.refuse_beside_undo(ctx.params)
        print_plain(command.undo_curation(undo, trust_output))
        return
    if output is None:
        raise UsageError("curate needs the OUTPUT of a finished audit, or --undo with a folder that --apply wrote")
    check_tracker(log_to)
    limits = {"fdr": fdr, "top_k": top_k, "max_score": max_score}
    policy = command.policy_of_options(limits, action, allow, opt_out)
    with interruptible(KEPT):
        curated = command.write_curation(output, policy, list_, apply, indices, trust_output)
    print_plain("\n".join(command.curation_lines(output, list_, curated, apply)))
    if log_to is not None:
        log_if_asked(open_audit(output), log_to)
