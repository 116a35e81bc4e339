"""Options that say what an audit measures, shared by the commands that take them, and how they become settings."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from volgrowth.config import AuditConfig
from volgrowth.errors import UsageError

Split = Annotated[str | None, typer.Option(help="Split of the data set.")]
ImageColumn = Annotated[str | None, typer.Option(help="Column with the images; found by itself if only one.")]
IdColumn = Annotated[str | None, typer.Option(help="Column with your ids; else a hash of the bytes.")]
ClassColumn = Annotated[str | None, typer.Option(help="Column of classes, for models that take a class.")]
CaptionColumn = Annotated[str | None, typer.Option(help="Column of captions, for models that take text.")]
Guidance = Annotated[float | None, typer.Option(help="Measure the flow with guidance of this scale too.")]
Base = Annotated[str | None, typer.Option(help="Pipeline that a network alone takes the rest from.")]
Lora = Annotated[str | None, typer.Option(help="Low-rank weights on top of the model: file, folder, hub id.")]
Holdout = Annotated[str | None, typer.Option(help="Images like these that the model was not trained on.")]
HoldoutSplit = Annotated[str | None, typer.Option(help="Split of the held-out images.")]
Preset = Annotated[str | None, typer.Option(help="standard (default), paper (as published) or volume.")]
ShardSize = Annotated[int | None, typer.Option(help="Rows per fragment.")]
EngineName = Annotated[str | None, typer.Option(help="ray (default), or local: one worker in this process.")]
Workers = Annotated[int | None, typer.Option(help="Most model replicas; default one per GPU, or core.")]
GpusPerWorker = Annotated[float | None, typer.Option(help="Share of a GPU for each worker.")]
RayAddress = Annotated[str | None, typer.Option(help="Ray cluster; one is started here otherwise.")]
ConfigFile = Annotated[Path | None, typer.Option(help="YAML file with any of the settings.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="One setting, such as measure.num_probes=8; repeatable.")
]
Model = Annotated[str, typer.Argument(help="Diffusers folder, hub id, or factory:module:function.")]
Data = Annotated[
    str, typer.Argument(help="Hub id, or path or URL of parquet, webdataset tars, images; save_to_disk folder.")
]
Output = Annotated[str, typer.Option(help="Folder or URL that holds the audit; repeat the command to resume it.")]


def _shared(
    model: Model,
    data: Data,
    output: Output,
    base: Base = None,
    lora: Lora = None,
    split: Split = None,
    image_column: ImageColumn = None,
    id_column: IdColumn = None,
    class_column: ClassColumn = None,
    caption_column: CaptionColumn = None,
    guidance: Guidance = None,
    holdout: Holdout = None,
    holdout_split: HoldoutSplit = None,
    preset: Preset = None,
    shard_size: ShardSize = None,
    engine: EngineName = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    ray_address: RayAddress = None,
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """What `takes_settings` gives a command."""


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """A command `(ctx, *, own options, **settings)` takes the shared options too, which `audit_config` reads."""
    first, *own = inspect.signature(command).parameters.values()
    own = [parameter for parameter in own if parameter.kind is not parameter.VAR_KEYWORD]
    shared = [
        parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in inspect.signature(_shared).parameters.values()
    ]
    command.__signature__ = inspect.Signature([first, *shared, *own])  # type: ignore[attr-defined]
    return command


def audit_config(ctx: typer.Context) -> AuditConfig:
    """Of a command's options, which are called as the settings are; those beside them are YAML file, preset, --set."""
    given = ctx.params
    unset = (None, False)
    named = {name: given[name] for name in AuditConfig.model_fields if not any(given.get(name) is no for no in unset)}
    merged = _settings(given["config"], named, given["preset"], given["settings"] or [])
    return AuditConfig.build(**merged)


def _settings(
    file: Path | None, named: dict[str, Any], preset: str | None, assignments: Sequence[str]
) -> dict[str, Any]:
    """Settings of a YAML file, overridden by options, overridden by assignments."""
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
                raise UsageError(f"--set {assignment!r}: {parent} is no group of settings")
        try:
            target[leaf] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UsageError(f"--set {assignment!r}: {text!r} is no YAML value") from None
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
