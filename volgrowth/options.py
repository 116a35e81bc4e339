"""The command-line options that become settings of an audit, shared by the commands that take them."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from volgrowth.config import AuditConfig
from volgrowth.errors import UsageError

MODEL, DATA, MEASURED, RUNNING = "Model", "Data", "What is measured", "Where and how it runs"
"""The groups of options in `--help`."""


def option(text: str, *names: str, group: str | None = None) -> Any:
    """Declare a command-line option by its help text, by its names unless they follow from the parameter, and group."""
    return typer.Option(*names, help=text, rich_help_panel=group)


EngineName = Annotated[
    str | None, option("ray (default), or local: one worker in this process, without Ray.", group=RUNNING)
]
Workers = Annotated[
    int | None,
    option("Most workers; each loads the model. Default: one per GPU, or per core without GPUs.", group=RUNNING),
]
GpusPerWorker = Annotated[
    float | None,
    option("GPUs per worker, such as 0.5 to share one between two. Default: 1 where there are any.", group=RUNNING),
]
TrustOutput = Annotated[
    bool,
    option(
        "Use the model and data that OUTPUT names, though this account did not make it; a model may be code that runs.",
        "--trust-output",
    ),
]
RayAddress = Annotated[
    str | None, option("Ray cluster to join; the default is a local one, started here.", group=RUNNING)
]
LogTo = Annotated[
    str | None,
    option("Tracker that gets numbers, settings, report and list too: mlflow:URI or wandb:PROJECT.", group=RUNNING),
]


def _inputs_and_output(
    model: Annotated[
        str, typer.Argument(help="Diffusers folder, its URL or hub id, EDM folder, or factory:module:function.")
    ],
    data: Annotated[
        str,
        typer.Argument(
            help="Hub id, save_to_disk folder, or path, pattern or URL of Parquet files, webdataset tars or images."
        ),
    ],
    output: Annotated[str, option("Folder or URL for the audit; repeat the command to resume it.")],
    subfolder: Annotated[
        str | None, option("Folder in MODEL that holds the network, such as unet_ema.", group=MODEL)
    ] = None,
    checkpoint: Annotated[
        str | None,
        option("Checkpoint of MODEL, if that is the folder of a training run: 500 is checkpoint-500.", group=MODEL),
    ] = None,
    base: Annotated[
        str | None, option("Pipeline that supplies what MODEL lacks, if MODEL is a bare network.", group=MODEL)
    ] = None,
    lora: Annotated[
        str | None, option("LoRA weights on top of the model: a file, folder, URL or hub id.", group=MODEL)
    ] = None,
    split: Annotated[str | None, option("Split of the data set, if it has several.", group=DATA)] = None,
    image_column: Annotated[
        str | None, option("Column with the images, or their extension in tars, if there are several.", group=DATA)
    ] = None,
    id_column: Annotated[
        str | None, option("Column with your own ids; by default a hash of the image.", group=DATA)
    ] = None,
    class_column: Annotated[
        str | None, option("Column with the classes, for a model that takes a class.", group=DATA)
    ] = None,
    caption_column: Annotated[
        str | None, option("Column with the captions, for a model that takes text.", group=DATA)
    ] = None,
    holdout: Annotated[str | None, option("Similar images that the model was not trained on.", group=DATA)] = None,
    holdout_split: Annotated[
        str | None, option("Split of the held-out images, if there are several.", group=DATA)
    ] = None,
    embedding_column: Annotated[
        str | None,
        option("Column with embeddings, by whose cosine near duplicates are found as well.", group=DATA),
    ] = None,
) -> None:
    """Declare the model, the data and the output among the options that `takes_settings` adds to a command."""


def _measure_and_engine(
    guidance: Annotated[
        float | None, option("Also measure growth under guidance of this scale.", group=MEASURED)
    ] = None,
    preset: Annotated[
        str | None,
        option("Measure standard (default), screen (the cheapest), paper (as published) or volume.", group=MEASURED),
    ] = None,
    shard_size: Annotated[
        int | None, option("Rows per shard, the unit of work that a worker takes (1024).", group=RUNNING)
    ] = None,
    trust_model: Annotated[
        bool, option("Go on although the model failed its check; the report says so.", "--trust-model", group=MODEL)
    ] = False,
    engine: EngineName = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    ray_address: RayAddress = None,
    config: Annotated[Path | None, option("YAML file with any of the settings.", group=MEASURED)] = None,
    settings: Annotated[
        list[str] | None, option("Any one setting, such as measure.num_probes=8; repeatable.", "--set", group=MEASURED)
    ] = None,
) -> None:
    """Declare how to measure and where to run among these options."""


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Add the shared options to a command `(ctx, *, own options, **settings)`; `audit_config(ctx)` reads them."""
    first, *own = inspect.signature(command).parameters.values()
    own = [parameter for parameter in own if parameter.kind is not parameter.VAR_KEYWORD]
    shared = [
        parameter.replace(kind=parameter.KEYWORD_ONLY)
        for declared in (_inputs_and_output, _measure_and_engine)
        for parameter in inspect.signature(declared).parameters.values()
    ]
    command.__signature__ = inspect.Signature([first, *shared, *own])  # type: ignore[attr-defined]
    return command


def audit_config(ctx: typer.Context) -> AuditConfig:
    """Return the settings that a command's options give: those of the YAML file, overridden by options and --set.

    Raises:
        UsageError: the file cannot be read, or a setting is unknown or has a wrong value.
    """
    given = ctx.params
    unset = (None, False)
    named = {name: given[name] for name in AuditConfig.model_fields if not any(given.get(name) is no for no in unset)}
    if given.get("checkpoint"):
        named["model"] = _checkpoint(named["model"], given["checkpoint"])
    merged = _merged_settings(given["config"], named, given["preset"], given["settings"] or [])
    return AuditConfig.build(**merged)


def _checkpoint(model: str, checkpoint: str) -> str:
    """Return the folder of a training run's checkpoint, which may be given by its number."""
    name = f"checkpoint-{checkpoint}" if checkpoint.isdigit() else checkpoint
    return f"{model.rstrip('/')}/{name}"


def _merged_settings(
    file: Path | None, named: dict[str, Any], preset: str | None, assignments: Sequence[str]
) -> dict[str, Any]:
    """Return the settings of a YAML file, overridden by options, overridden by assignments NAME=VALUE."""
    merged = _read_yaml(file) if file else {}
    merged.update(named)
    if preset:
        measure = merged.get("measure") or {}
        same = isinstance(measure, dict) and measure.get("preset", "standard") == preset
        merged["measure"] = {**(measure if same else {}), "preset": preset}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {assignment!r}: expected NAME=VALUE, such as measure.num_probes=8")
        target = merged
        *parents, leaf = name.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise UsageError(f"--set {assignment!r}: {parent} is a single setting, and has none below it")
        try:
            target[leaf] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UsageError(f"--set {assignment!r}: {text!r} is not a YAML value") from None
    return merged


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--config {file} cannot be read ({reason}): expected a YAML file of settings") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UsageError(
            f"--config {file} holds {type(content).__name__}: expected a YAML mapping of setting names to values"
        )
    return content
