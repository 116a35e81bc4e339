"""The command line: it turns arguments into calls, and results into lines and exit codes.

Heavy imports wait until a command runs, so that --help answers at once.
"""

import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from volgrowth import cli_comparing
from volgrowth.errors import UsageError, VolgrowthError
from volgrowth.exits import Commands, Exit, interruptible
from volgrowth.guard import KEPT, continue_guarded, tell_guard
from volgrowth.options import (
    DATA,
    MEASURED,
    RUNNING,
    EngineName,
    GpusPerWorker,
    RayAddress,
    TrustOutput,
    Workers,
    audit_config,
    option,
    takes_settings,
)
from volgrowth.plain import keep_printing, plain, print_commands, print_plain
from volgrowth.signals import EndingSignals
from volgrowth.typed import SentenceCommand
from volgrowth.version import VERSION

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Find the training images that a diffusion model has memorized.",
)


@app.command("audit")
@takes_settings
def _audit(
    ctx: typer.Context,
    *,
    reference: Annotated[
        str | None, option("Audit of the same rows by a model not trained on them, for calibration.", group=DATA)
    ] = None,
    cascade: Annotated[
        bool,
        option("Screen every row cheaply, and measure only those that may be flagged.", "--cascade", group=MEASURED),
    ] = False,
    min_workers: Annotated[
        int | None, option("Fewest workers to go on with (1); the audit waits for them.", group=RUNNING)
    ] = None,
    extend: Annotated[bool, option("Audit files that DATA gained since, into the same OUTPUT.", "--extend")] = False,
    retry_failed: Annotated[bool, option("Try the rows again that have no score.", "--retry-failed")] = False,
    log_json: Annotated[
        str | None, option("File to append events to while the audit runs, one JSON object per line.", group=RUNNING)
    ] = None,
    max_failed: Annotated[
        float | None, option("Share of rows that may have no score before the exit code is 3 (0.01).", group=RUNNING)
    ] = None,
    **settings: Any,
) -> None:
    """Measure every image of DATA under MODEL, calibrate, and write tables and a report to OUTPUT.

    Examples:

      volgrowth audit ./ddpm ./train.parquet --output out --holdout ./test.parquet

      volgrowth audit google/ddpm-cifar10-32 cifar10 --split train --output s3://bucket/cifar10
    """
    asked = audit_config(ctx)
    with interruptible(f"finished shards are kept in {asked.output}; the same command resumes"):
        from volgrowth.commands.audit import audit_lines, failed_share, run_audit

        finished = run_audit(asked, extend=extend, retry_failed=retry_failed)
    print_plain("\n".join(audit_lines(finished)))
    _warn((finished.summary["detection"] or {}).get("warnings", ()))
    if (failed := failed_share(finished)) > asked.max_failed:
        print_plain(
            f"{failed:.1%} of the rows have no score, more than --max-failed {asked.max_failed:g}: the column "
            f"status of scores says why",
            error=True,
        )
        raise typer.Exit(Exit.TOO_MANY_FAILED)


@app.command("plan")
@takes_settings
def _plan(
    ctx: typer.Context,
    *,
    price: Annotated[float | None, option("Price per GPU-hour (per worker-hour on CPUs), to predict the cost.")] = None,
    **settings: Any,
) -> None:
    """Measure a few random parts of DATA, and predict what the audit would take: hours, memory, money.

    Keeps its notes in OUTPUT/.plan.

    Example:

      volgrowth plan ./ddpm ./train.parquet --output out --price 2.5
    """
    asked = audit_config(ctx)
    with interruptible("nothing was predicted; the same command starts again"):
        from volgrowth.commands.plan import describe_forecast, plan_audit

        print_plain(describe_forecast(plan_audit(asked, price=price)))


@app.command("convert")
def _convert(
    pickle: Annotated[Path, typer.Argument(help="Checkpoint of NVlabs' EDM, a .pkl file.")],
    folder: Annotated[Path, typer.Argument(help="New folder for config.json and model.safetensors.")],
    allow_pickle: Annotated[
        bool, option("Confirm that a pickle may be read; none of its code runs.", "--allow-pickle")
    ] = False,
) -> None:
    """Turn a pickled EDM network into a folder that can be audited.

    Opening a pickle in the usual way can run any code under your account. This reader runs none: it refuses everything
    that is not a tensor or a plain value of a network, and names it.

    Example:

      volgrowth convert edm-cifar10-32x32-uncond-vp.pkl ./edm-cifar10 --allow-pickle
    """
    from volgrowth.models.edm.nvlabs import convert_pickle

    print_plain(str(convert_pickle(pickle, folder, allow_pickle)))


@app.command("report")
def _report(
    output: Annotated[str, typer.Argument(help="Output of a finished audit.")],
    redact: Annotated[
        bool, option("Write report-redacted.html instead: without pictures, to be handed on.", "--redact")
    ] = False,
    trust_output: TrustOutput = False,
) -> None:
    """Write report.html and its figures again from the tables of a finished audit.

    Example:

      volgrowth report out --redact
    """
    from volgrowth.audit.output.result import REDACTED_FILE, REPORT_FILE
    from volgrowth.commands.report import report_audit

    audit = report_audit(output, redact=redact, trust_output=trust_output)
    print_plain(audit.store.path(REDACTED_FILE if redact else REPORT_FILE))


app.command("diff")(cli_comparing.diff)
app.command("trend")(cli_comparing.trend)


@app.command("verify")
def _verify(
    output: Annotated[str, typer.Argument(help="Output of a finished audit.")],
    samples: Annotated[int, option("Number of images to draw from the model; 2500 or more find most copies.")],
    stop_level: Annotated[
        float | None, option("Draw the samples again with a sampler whose last step starts at this noise level.")
    ] = None,
    rates: Annotated[
        bool, option("Also measure how often the model makes each flagged or proven image, however rare it is.")
    ] = False,
    rates_of: Annotated[Path | None, option("File of ids, one per line, whose rates are measured as well.")] = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    ray_address: RayAddress = None,
    engine: EngineName = None,
    trust_output: TrustOutput = False,
) -> None:
    """Draw SAMPLES from the audited model, and see which training images they reproduce.

    Fills the column verified_hits of the findings, says how many of the flags are proved, and writes the report again.
    A later call with more samples keeps those drawn before.

    Example:

      volgrowth verify out --samples 5000 --rates
    """
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
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            ray_address=ray_address,
            engine=engine or "ray",
            trust_output=trust_output,
        )
    found = audit.summary["verification"]
    print_plain("\n".join([*proof_sentences(found), f"report: {audit.store.path('report.html')}"]))
    _warn(found["warnings"])


@app.command("curate")
def _curate(
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
) -> None:
    """Decide what to do with each row, as a list that can be edited, and apply it to a copy of the data set.

    --fdr, --top-k or --max-score makes the list; without them it is read from --list. The data set itself is never
    changed.

    Examples:

      volgrowth curate out --fdr 0.1 --action dedupe --list list.csv

      volgrowth curate out --list list.csv --apply ./curated

      volgrowth curate --undo ./curated
    """
    from volgrowth.commands import curate

    if undo is not None:
        curate.refuse_beside_undo(ctx.params)
        print_plain(curate.undo_curation(undo, trust_output))
        return
    if output is None:
        raise UsageError("curate needs the OUTPUT of a finished audit, or --undo with a folder that --apply wrote")
    limits = {"fdr": fdr, "top_k": top_k, "max_score": max_score}
    policy = curate.policy_of_options(limits, action, allow, opt_out)
    with interruptible(KEPT):
        curated = curate.write_curation(output, policy, list_, apply, indices, trust_output)
    print_plain("\n".join(curate.curation_lines(output, list_, curated, apply)))


@app.command("check")
def _check(
    output: Annotated[str, typer.Argument(help="Output of a finished audit.")],
    fdr: Annotated[float, option("An image is flagged if its q_value is at most this.")] = 0.1,
    max_flagged: Annotated[float, option("Share of the distinct images that may be flagged or reproduced.")] = 0.0,
    junit: Annotated[str | None, option("JUnit file to write, a path or URL.")] = None,
    markdown: Annotated[bool, option("Print GitHub-flavoured Markdown.", "--markdown")] = False,
    github: Annotated[bool, option("Print annotations of GitHub Actions after the text.", "--github")] = False,
) -> None:
    """Fail if an audit found more memorized images than allowed: exit code 0, 1, or 2 if it cannot tell.

    Images count that are flagged at the rate, or that samples of verify reproduced. It cannot tell if more of them than
    allowed could be there unseen: no or too few images were held out, or too many were not judged. It says what to do.

    Examples:

      volgrowth check out --fdr 0.05 --max-flagged 0.001 --junit check.xml

      volgrowth check out --markdown >> "$GITHUB_STEP_SUMMARY"
    """
    from volgrowth.analysis.gate.forms import gate_annotations, gate_markdown, gate_text
    from volgrowth.commands.check import check_audit

    found = check_audit(output, fdr, max_flagged, junit=junit)
    print_plain(gate_markdown(found) if markdown else gate_text(found))
    if github:
        print_commands(gate_annotations(found))
    if not found.decided:
        raise typer.Exit(Exit.CANNOT_TELL)
    if not found.passed:
        raise typer.Exit(Exit.MORE_THAN_ALLOWED)


@app.command("check-output")
def _check_output(output: Annotated[str, typer.Argument(help="Output of a finished audit.")]) -> None:
    """Verify every file of an audit's output: that it is there, whole, unchanged and fits the others.

    Exit code 0, or 2 with a line for each bad file, which says what makes it again.

    Example:

      volgrowth check-output out
    """
    from volgrowth.commands.check_output import bad_lines, check_output, verified_lines

    found = check_output(output)
    print_plain("\n".join(verified_lines(found)))
    if found.bad:
        print_plain("\n".join(bad_lines(found)), error=True)
        raise typer.Exit(Exit.NOT_STARTED)


@app.command("doctor")
def _doctor() -> None:
    """Show whether an audit can run here: versions, devices, Ray, stores, credentials (never their values), room.

    Exit code 0, or 2 if something is broken that an audit needs.

    Example:

      volgrowth doctor
    """
    from volgrowth.commands.doctor import doctor_lines, examine_machine

    found = examine_machine()
    print_plain("\n".join(doctor_lines(found)))
    if any(each.broken for each in found):
        raise typer.Exit(Exit.NOT_STARTED)


@app.command("demo")
def _demo(output: Annotated[Path, option("Folder for model, data, audit and report.")]) -> None:
    """Train a small model on real digits, audit it, and show what it reproduces. Takes minutes on two cores.

    Example:

      volgrowth demo --output demo-output
    """
    with interruptible(f"what is finished is kept in {output}; the same command goes on"):
        from volgrowth.commands.demo import run_demo

        run_demo(output)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, option("Print the version.", "--version")] = False) -> None:
    if version:
        print_plain(VERSION)
        raise typer.Exit


for _command in app.registered_commands:
    _command.cls = SentenceCommand


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print_plain(f"warning: {plain(warning)}", error=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    keep_printing()
    continue_guarded(lambda *lock: import_module("volgrowth.audit.output.lock").give_up_lock(*lock))
    signals = EndingSignals()
    code = run_command(sys.argv[1:] if arguments is None else arguments)
    tell_guard(code=code)
    signals.exit_with(code)
    sys.exit(code)


def run_command(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code. A `VolgrowthError` is printed as one sentence."""
    try:
        app(list(arguments), prog_name="volgrowth")
    except VolgrowthError as error:
        print_plain(f"volgrowth: {plain(str(error))}", error=True)
        return Exit.NOT_STARTED
    except SystemExit as ending:
        return int(ending.code or Exit.DONE)
    except Exception:  # a bug: 1, Python's own code for it, would say that `check` found something
        print_plain(traceback.format_exc().rstrip(), error=True)
        return Exit.NOT_STARTED
    return Exit.DONE
