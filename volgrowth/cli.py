"""The command line: it turns arguments into calls, and results into lines and exit codes.

Heavy imports wait until a command runs, so that --help answers at once.
"""

import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from volgrowth import cli_acting, cli_comparing
from volgrowth.errors import VolgrowthError
from volgrowth.exits import Commands, Exit, interruptible
from volgrowth.guard import continue_guarded, tell_guard
from volgrowth.options import (
    DATA,
    MEASURED,
    RUNNING,
    LogTo,
    audit_config,
    option,
    takes_settings,
)
from volgrowth.plain import keep_printing, plain, print_commands, print_plain, print_warnings
from volgrowth.signals import EndingSignals
from volgrowth.typed import SentenceCommand
from volgrowth.version import VERSION

MAX_FAILED = 0.01
"""Share of captions without a score from which on the exit code is 3; of images --max-failed says it."""

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
    log_to: LogTo = None,
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
    from volgrowth.commands.tracking import check_tracker, log_if_asked

    check_tracker(log_to)
    with interruptible(f"finished shards are kept in {asked.output}; the same command resumes"):
        from volgrowth.commands.audit import audit_lines, failed_share, run_audit

        finished = run_audit(asked, extend=extend, retry_failed=retry_failed)
    print_plain("\n".join(audit_lines(finished)))
    print_warnings((finished.summary["detection"] or {}).get("warnings", ()))
    log_if_asked(finished, log_to)
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


@app.command("prompts")
def _prompts(
    model: Annotated[
        str,
        typer.Argument(help="Diffusers folder of a model of captions, its URL or hub id, or factory:module:function."),
    ],
    file: Annotated[str, typer.Argument(help="Text file of captions, one a line, or its URL.")],
    output: Annotated[str, option("New folder or URL for the findings.")],
    neutral: Annotated[
        str | None, option("Captions to compare with, one a line: of images that the model was not trained on.")
    ] = None,
    fdr: Annotated[float, option("A caption is flagged if its q_value is at most this.")] = 0.1,
    subfolder: Annotated[str | None, option("Folder in MODEL that holds the network, such as unet_ema.")] = None,
    base: Annotated[str | None, option("Pipeline that supplies what MODEL lacks, if it is a bare network.")] = None,
    lora: Annotated[str | None, option("LoRA weights on top of the model.")] = None,
) -> None:
    """Score the captions of FILE alone, without images, and flag those that steer MODEL unusually far.

    Captions of memorized images steer the first step of a sample further than others. Writes a table, a list of the
    flagged captions and a page to OUTPUT.

    Example:

      volgrowth prompts ./stable-diffusion captions.txt --output out-prompts --neutral other-captions.txt
    """
    with interruptible("nothing was written; the same command starts again"):
        from volgrowth.commands.prompts import audit_prompts, prompt_lines, unscored_share

        found = audit_prompts(model, file, output, neutral, fdr=fdr, subfolder=subfolder, base=base, lora=lora)
    print_plain("\n".join(prompt_lines(found)))
    if (failed := unscored_share(found)) > MAX_FAILED:
        print_plain(f"{failed:.1%} of the captions have no score, more than {MAX_FAILED:.0%}", error=True)
        raise typer.Exit(Exit.TOO_MANY_FAILED)


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


app.command("report")(cli_acting.report)
app.command("diff")(cli_comparing.diff)
app.command("trend")(cli_comparing.trend)
app.command("verify")(cli_acting.verify)
app.command("curate")(cli_acting.curate)


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
