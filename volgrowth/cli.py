"""The command line. Heavy imports wait until a command runs, so that --help answers at once."""

import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from volgrowth.errors import UsageError, VolgrowthError
from volgrowth.options import EngineName, GpusPerWorker, RayAddress, audit_config, takes_settings
from volgrowth.version import VERSION

if TYPE_CHECKING:
    from volgrowth.analysis.policy import Policy


class Exit(IntEnum):
    """What the shell is told."""

    DONE = 0
    MORE_THAN_ALLOWED = 1
    NOT_STARTED = 2
    TOO_MANY_FAILED = 3
    INTERRUPTED = 130


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Find the training images that a diffusion model has memorized.",
)


@app.command()
@takes_settings
def audit(
    ctx: typer.Context,
    *,
    reference: Annotated[
        str | None, typer.Option(help="Audit of the same rows under a model not trained on them, for calibration.")
    ] = None,
    adaptive: Annotated[bool, typer.Option("--adaptive", help="More probes for rows near the threshold.")] = False,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="Screen every row, measure those that may be flagged.")
    ] = False,
    min_workers: Annotated[int | None, typer.Option(help="Stop when fewer are ready for --set wait_minutes.")] = None,
    extend: Annotated[bool, typer.Option("--extend", help="Audit files that DATA gained into OUTPUT.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Score rows without a score again.")] = False,
    log_json: Annotated[str | None, typer.Option(help="Append what happens to a file, one JSON object a line.")] = None,
    max_failed: Annotated[float | None, typer.Option(help="Share of rows that may fail before exit code 3.")] = None,
    **settings: Any,
) -> None:
    """Measure every image of DATA under MODEL, calibrate, and write tables and a report to OUTPUT.

    Examples:

      volgrowth audit ./ddpm ./train.parquet --output out --holdout ./test.parquet

      volgrowth audit google/ddpm-cifar10-32 cifar10 --split train --output s3://bucket/cifar10
    """
    asked = audit_config(ctx)

    from volgrowth.commands.audit import failed_share, run_audit
    from volgrowth.report.words import cascade_sentences, title

    try:
        finished = run_audit(asked, extend=extend, retry_failed=retry_failed)
    except KeyboardInterrupt:
        print(f"interrupted: finished shards are kept in {asked.output}; the same command resumes", file=sys.stderr)
        raise typer.Exit(Exit.INTERRUPTED) from None
    counts, failed = finished.summary["counts"], failed_share(finished)
    print(f"{counts['ok']} of {counts['rows']} images scored; report: {finished.store.path('report.html')}")
    print("\n".join([title(finished.summary), *cascade_sentences(finished.summary.get("cascade"))]))
    _warn((finished.summary["detection"] or {}).get("warnings", ()))
    if failed > asked.max_failed:
        print(
            f"{failed:.1%} of the rows have no score, more than --max-failed {asked.max_failed:g}: the column "
            f"status of scores says why",
            file=sys.stderr,
        )
        raise typer.Exit(Exit.TOO_MANY_FAILED)


@app.command()
@takes_settings
def plan(
    ctx: typer.Context,
    *,
    price: Annotated[float | None, typer.Option(help="Of an hour of one GPU, or of one worker without.")] = None,
    **settings: Any,
) -> None:
    """Measure a few random stretches of DATA, and say what the audit would take: hours, memory, money.

    Leaves its notes in OUTPUT/.plan.

    Example:

      volgrowth plan ./ddpm ./train.parquet --output out --price 2.5
    """
    from volgrowth.commands.plan import describe, plan_audit

    print(describe(plan_audit(audit_config(ctx), price=price)))


@app.command()
def convert(
    pickle: Annotated[Path, typer.Argument(help="Checkpoint of NVlabs' EDM, a .pkl file.")],
    folder: Annotated[Path, typer.Argument(help="New folder for config.json and model.safetensors.")],
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Read a pickle, whatever it holds.")] = False,
) -> None:
    """Turn a pickled EDM network into a folder that can be audited.

    A pickle can run any code as you when it is opened. This reader runs none: what is not a tensor or a plain value of
    a network is refused by name.

    Example:

      volgrowth convert edm-cifar10-32x32-uncond-vp.pkl ./edm-cifar10 --allow-pickle
    """
    from volgrowth.models.edm.nvlabs import convert_pickle

    print(convert_pickle(pickle, folder, allow_pickle))


@app.command()
def report(
    output: Annotated[str, typer.Argument(help="Output of a finished audit.")],
    redact: Annotated[bool, typer.Option("--redact", help="Leave out all pictures, to hand the page on.")] = False,
) -> None:
    """Write report.html and its figures again from the tables of a finished audit.

    Example:

      volgrowth report out --redact
    """
    from volgrowth.audit.output.result import open_audit
    from volgrowth.commands.audit import write_report

    finished = open_audit(output)
    write_report(finished, redact)
    print(finished.store.path("report.html"))


@app.command()
def diff(
    out_a: Annotated[str, typer.Argument(help="Output of a finished audit: the earlier checkpoint or data set.")],
    out_b: Annotated[str, typer.Argument(help="Output of the audit to compare it with.")],
    fdr: Annotated[float, typer.Option(help="Rate of false discoveries among all significant changes.")] = 0.1,
    table: Annotated[
        str | None, typer.Option(help="Parquet file or URL for the whole table, one row per image.")
    ] = None,
) -> None:
    """Say which images became or ceased to be memorized from audit OUT_A to audit OUT_B.

    Example:

      volgrowth diff out-before out-after --table changes.parquet
    """
    from volgrowth.analysis.comparison.changes import compare_audits, write_changes
    from volgrowth.analysis.comparison.wording import comparison_text
    from volgrowth.audit.output.result import open_audit

    comparison = compare_audits(open_audit(out_a), open_audit(out_b), fdr)
    if table:
        write_changes(comparison, table)
    print(comparison_text(comparison))


@app.command()
def verify(
    output: Annotated[str, typer.Argument(help="Output of a finished audit.")],
    samples: Annotated[int, typer.Option(help="Images to draw from the model; 2500 or more say most.")],
    stop_level: Annotated[
        float | None, typer.Option(help="Compare a sampler that takes its last step from this noise level.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Model replicas; default one per GPU, or per core.")] = None,
    gpus_per_worker: GpusPerWorker = None,
    ray_address: RayAddress = None,
    engine: EngineName = None,
) -> None:
    """Draw SAMPLES from the audited model and see which training images they reproduce.

    Fills the column verified_hits of findings, says how many of the flags are proved, and writes the report again.
    A later call with more samples keeps those drawn before.

    Example:

      volgrowth verify out --samples 5000
    """
    from volgrowth.commands.verify import verify_audit
    from volgrowth.report.words import proof_sentences

    try:
        audit = verify_audit(
            output,
            samples,
            stop_level=stop_level,
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            ray_address=ray_address,
            engine=engine or "ray",
        )
    except KeyboardInterrupt:
        print(f"interrupted: samples drawn are kept in {output}; the same command goes on", file=sys.stderr)
        raise typer.Exit(Exit.INTERRUPTED) from None
    found = audit.summary["verification"]
    print("\n".join([*proof_sentences(found), f"report: {audit.store.path('report.html')}"]))
    _warn(found["warnings"])


@app.command()
def curate(
    ctx: typer.Context,
    output: Annotated[str | None, typer.Argument(help="Output of a finished audit.")] = None,
    fdr: Annotated[float | None, typer.Option(help="Flag what has at most this q_value.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Flag so many images, highest in excess_growth.")] = None,
    max_score: Annotated[float | None, typer.Option(help="Flag what has more excess_growth than this.")] = None,
    action: Annotated[str | None, typer.Option(help="For what is flagged: drop (default), dedupe, downweight.")] = None,
    allow: Annotated[Path | None, typer.Option(help="File of ids or sources, one a line, that always stay.")] = None,
    opt_out: Annotated[Path | None, typer.Option(help="File of ids or sources, one a line, that always go.")] = None,
    list_: Annotated[str | None, typer.Option("--list", help="The list, .csv or .parquet: written, or taken.")] = None,
    apply: Annotated[str | None, typer.Option(help="New folder for the data set that the list says.")] = None,
    indices: Annotated[bool, typer.Option("--indices", help="Apply as row numbers for `datasets`, no copy.")] = False,
    undo: Annotated[str | None, typer.Option(help="Folder that --apply wrote: remove it; takes no OUTPUT.")] = None,
) -> None:
    """Say what to do with each row, as a list that can be edited, and apply it to a copy of the data set.

    With --fdr, --top-k or --max-score the list is made, otherwise --list is taken as it is. The data set itself is
    never changed.

    Examples:

      volgrowth curate out --fdr 0.1 --action dedupe --list list.csv

      volgrowth curate out --list list.csv --apply ./curated

      volgrowth curate --undo ./curated
    """
    from volgrowth import curation
    from volgrowth.commands.curate import curate_audit

    if undo is not None:
        _refuse_beside_undo(ctx.params)
        gone = curation.undo_list(undo)
        print(f"removed {undo} ({gone.rows:,} rows, {len(gone.files):,} files); {gone.data} was not changed")
        return
    if output is None:
        raise UsageError("curate needs the OUTPUT of a finished audit, or --undo with a folder that --apply wrote")
    table, applied = curate_audit(output, _policy(ctx.params), list_path=list_, destination=apply, indices=indices)
    counts = Counter(table["action"].to_pylist())
    said = ", ".join(f"{name} {counts[name]:,}" for name in ("drop", "downweight", "review", "keep"))
    print(f"{said} of {len(table):,} rows; list: {list_ or output.rstrip('/') + '/' + curation.CURATION_FILE}")
    if applied:
        print(f"{applied.rows:,} rows in {apply}; volgrowth curate --undo {apply} removes it")


@app.command()
def check(
    output: Annotated[str, typer.Argument(help="Output of a finished audit.")],
    fdr: Annotated[float, typer.Option(help="An image is flagged where its q_value is at most this.")] = 0.1,
    max_flagged: Annotated[float, typer.Option(help="Share of the distinct images that may be flagged.")] = 0.0,
    junit: Annotated[str | None, typer.Option(help="JUnit file to write, a path or URL.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print GitHub-flavoured Markdown.")] = False,
) -> None:
    """Fail where an audit found more memorized images than allowed: exit code 0, 1, or 2 if it could not tell.

    Examples:

      volgrowth check out --fdr 0.05 --max-flagged 0.001 --junit check.xml

      volgrowth check out --markdown >> "$GITHUB_STEP_SUMMARY"
    """
    from volgrowth.analysis import gate
    from volgrowth.analysis.policy import store_of
    from volgrowth.audit.output.result import open_audit

    found = gate.check_limit(open_audit(output), fdr, max_flagged)
    if junit:
        store, name = store_of(junit)
        store.write(name, gate.gate_junit(found))
    print(gate.gate_markdown(found) if markdown else gate.gate_text(found))
    _warn(found.notes)
    if not found.passed:
        raise typer.Exit(Exit.MORE_THAN_ALLOWED)


@app.command()
def demo(output: Annotated[Path, typer.Option(help="Folder for model, data, audit and report.")]) -> None:
    """Train a small model on real digits, audit it, and show what it reproduces. Minutes on two cores.

    Example:

      volgrowth demo --output demo-output
    """
    from volgrowth.commands.demo import run_demo

    run_demo(output)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(VERSION)
        raise typer.Exit


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _refuse_beside_undo(given: dict[str, Any]) -> None:
    for name, value in given.items():
        if name != "undo" and value not in (None, False):
            raise UsageError(f"--undo takes nothing beside it, and {name.strip('_')} was {value}: leave that out")


def _policy(given: dict[str, Any]) -> "Policy | None":
    """Of the options of `curate`; None where they name none."""
    from volgrowth.analysis.policy import Policy

    limits = {name: given[name] for name in ("fdr", "top_k", "max_score") if given[name] is not None}
    options = {name: given[name] for name in ("action", "allow", "opt_out") if given[name] is not None}
    flags = [f"--{name.replace('_', '-')}" for name in (*limits, *options)]
    if len(limits) > 1:
        raise UsageError(f"{' and '.join(flags[: len(limits)])} were given: expected one of them")
    if not limits and options:
        raise UsageError(f"{flags[0]} needs --fdr, --top-k or --max-score beside it; --top-k 0 flags nothing")
    for name in options.keys() & {"allow", "opt_out"}:
        options[name] = _read_ids(options[name], f"--{name.replace('_', '-')}")
    return next((Policy(by=by, limit=limit, **options) for by, limit in limits.items()), None)  # type: ignore[arg-type]


def _read_ids(file: Path, option: str) -> frozenset[str]:
    """One a line."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{option} {file} cannot be read ({error}): expected a text file, one id a line") from None
    return frozenset(line for line in lines if line)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line; the exit code. A `VolgrowthError` is printed as one sentence."""
    try:
        app(list(arguments), prog_name="volgrowth")
    except VolgrowthError as error:
        print(f"volgrowth: {error}", file=sys.stderr)
        return Exit.NOT_STARTED
    except SystemExit as ending:
        return int(ending.code or Exit.DONE)
    except Exception:  # a bug: 1, Python's own code for it, would say that `check` found something
        traceback.print_exc()
        return Exit.NOT_STARTED
    return Exit.DONE
