"""Audits of what a program holds: a model that is loaded, images that are objects.

They go the way of `volgrowth audit`: the images are written into the output as Parquet files, the model is named by its
weights, and everything else is the same. Without an output, a temporary folder is made, which goes when the audit does.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any
from weakref import finalize

import pyarrow as pa
import torch

from volgrowth.audit.engine.progress import told_of_progress
from volgrowth.audit.output.fragments import read_scores
from volgrowth.audit.output.freezing import freeze
from volgrowth.audit.output.lock import driving
from volgrowth.audit.output.manifest import IMAGES_FOLDER, MANIFEST
from volgrowth.audit.output.result import Audit
from volgrowth.commands.audit import inspect_inputs, print_opened, run_audit
from volgrowth.config import AuditConfig
from volgrowth.errors import DataError, UsageError
from volgrowth.held import hold
from volgrowth.models.objects.adapting import adapt
from volgrowth.models.objects.held_models import at_rest, hold_model
from volgrowth.plain import print_plain
from volgrowth.sources.given.containers import GivenImages
from volgrowth.sources.given.encoding import checked_range
from volgrowth.sources.given.written import Written
from volgrowth.storage.store import Store

Progress = Callable[[int, int], object]
SHARD_SIZE = 256
"""Rows per shard: fewer than a command takes, so that a callback hears of small data sets too."""
NOT_RESUMABLE = (
    "interrupted: without an output nothing of this audit is kept; give output=FOLDER, and the same call resumes it"
)
_OF_AUDITS = ("holdout", "holdout_conditions", "embeddings", "embedding_column", "reference", "output")
"""What `audit_images` takes and scores alone do not depend on."""
_NAMES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class _Kept:
    """What lives as long as an audit: its model, and the folder of an audit without an output."""

    def __init__(self, model: Any, folder: str | None):
        self.model = model
        if folder is not None:
            finalize(self, shutil.rmtree, folder, ignore_errors=True)


@dataclass(frozen=True)
class _Asked:
    """What the user asked for, as settings of an audit, and what must be kept for it."""

    config: AuditConfig
    model: Any
    kept: _Kept
    temporary: bool


def audit_images(
    model: Any,
    images: Any,
    holdout: Any = None,
    output: str | PathLike[str] | None = None,
    preset: str = "standard",
    progress: Progress | None = None,
    *,
    value_range: tuple[float, float] | None = None,
    conditions: Sequence[str | int | None] | None = None,
    holdout_conditions: Sequence[str | int | None] | None = None,
    embeddings: Any = None,
    quiet: bool = False,
    **settings: Any,
) -> Audit:
    """Audit images that a program holds, under a model that it has loaded.

    It measures what `volgrowth audit` measures, in the same way. Images are written as 8-bit files into the output,
    which the report, `verify_audit` and `curate_audit` read. The model stays where it is; networks that are in
    training are put into `eval()` for the audit and back afterwards.

    Args:
        model: a pipeline, network or diffusion that `vg.adapt` knows, a `Denoiser`, or the name of a model.
        images: a `datasets.Dataset`, a torch `Dataset`, a list of PIL images, arrays or tensors, one numpy array or
            tensor of all images, (images, channels, height, width), or the name of a data set. Of what a data set gives
            for a number, the first of several values is the image.
        holdout: similar images that the model was not trained on, likewise: with them, flags have a promised error
            rate.
        output: folder or URL for the audit. The same call with the same model and images resumes it, or opens it if it
            is finished. Without one the audit lives in a temporary folder, goes when the returned object goes, and
            cannot be resumed.
        preset: what is measured: `standard`, `screen`, `paper` or `volume`.
        progress: function that is told (rows done, all rows), those of `holdout` included, after each shard; it takes
            the place of the display.
        value_range: the numbers that stand for black and white in floating-point arrays and tensors, such as (-1, 1)
            or (0, 1). It is never guessed: without it such images are refused. Those of type uint8 are pixels from 0
            to 255.
        conditions: a class (a number) or a caption (a string) for each image, for models that take them, or None for an
            image without one, which is counted with what is left aside; for data sets with columns name the column
            instead, `class_column="label"`.
        holdout_conditions: the same for `holdout`.
        embeddings: an array or tensor with an embedding of each image, (images, dimensions), by whose cosine near
            duplicates are found beside the perceptual hash; for data sets with columns name the column instead,
            `embedding_column="clip"`.
        quiet: print nothing.
        **settings: further settings of `AuditConfig`, such as `seed`, `batch_size`, `cascade`, `image_column`,
            `id_column`, or `engine="ray"`; by default the engine is `local`: one worker in this process.

    Returns:
        The finished audit.

    Raises:
        DataError: images are none, the range of their numbers was not said, they lack a column that was named, or not
            one of them has a condition where conditions were given.
        ModelError: the model is none that is known, or is not understood.
        VolgrowthError: as `run_audit`.
    """
    settings = {**settings, "conditions": conditions, "holdout_conditions": holdout_conditions}
    settings["embeddings"] = embeddings
    with _asked(model, images, holdout, output, preset, value_range, settings) as asked:
        if not quiet and asked.temporary:
            print_plain("no output was given: the audit goes with the object that is returned, and cannot be resumed")
        with told_of_progress(progress):
            return run_audit(asked.config, quiet=quiet or progress is not None)


def score_images(
    model: Any,
    images: Any,
    preset: str = "standard",
    progress: Progress | None = None,
    *,
    value_range: tuple[float, float] | None = None,
    conditions: Sequence[str | int | None] | None = None,
    quiet: bool = False,
    **settings: Any,
) -> pa.Table:
    """Return the scores of images alone, one row for each, without calibration or flags.

    Args:
        model: as for `audit_images`.
        images: as for `audit_images`.
        preset: as for `audit_images`.
        progress: as for `audit_images`.
        value_range: as for `audit_images`.
        conditions: as for `audit_images`.
        quiet: as for `audit_images`.
        **settings: as for `audit_images`, but for those that compare images or keep an audit: `cascade`, `holdout`,
            `holdout_conditions`, `embeddings`, `embedding_column`, `reference` and `output`.

    Returns:
        The columns of `Audit.scores`, in the order of the images; scores are null in rows whose status is not `ok`.

    Raises:
        UsageError: a setting was given that compares images or keeps an audit.
        VolgrowthError: as `audit_images`.
    """
    if settings.get("cascade"):
        raise UsageError("score_images measures every image, and cascade does not: leave it out, or use audit_images")
    for name in _OF_AUDITS:
        if settings.pop(name, None) is not None:
            raise UsageError(
                f"score_images measures images, compares none and keeps nothing, so that {name} would change nothing: "
                f"leave it out, or use audit_images"
            )
    settings |= {"conditions": conditions, "holdout_conditions": None}
    with _asked(model, images, None, None, preset, value_range, settings) as asked:
        store = Store(asked.config.output)
        inputs = inspect_inputs(asked.config)
        silent = quiet or progress is not None
        if not silent:
            print_opened(inputs.manifest)
        from volgrowth.commands.measuring import score_alone

        with driving(store) as lock, told_of_progress(progress):
            fenced = lock.fenced()
            manifest = freeze(fenced, inputs)
            score_alone(asked.config, manifest, fenced, lock, silent)
        return read_scores(store, manifest)


@contextmanager
def _asked(
    model: Any,
    images: Any,
    holdout: Any,
    output: str | PathLike[str] | None,
    preset: str,
    value_range: tuple[float, float] | None,
    settings: dict[str, Any],
) -> Iterator[_Asked]:
    """Give the settings of what was asked for, with model and images where workers find them."""
    temporary = output is None
    given = {"engine": "local", "shard_size": SHARD_SIZE, **settings}
    conditions, held_out = given.pop("conditions"), given.pop("holdout_conditions")
    measure = given.pop("measure", {})
    with at_rest(model):  # before it is adapted, which puts networks into eval()
        found = model if isinstance(model, str | PathLike) else adapt(model)
        if not isinstance(found, str | PathLike):
            given |= _of_model(found, given)
        folder = tempfile.mkdtemp(prefix="volgrowth-") if output is None else None
        kept = _Kept(found, folder)
        place = folder or _absolute(str(output))
        store = Store(place)
        hold(store.url, kept)
        objects, values = {"images": images, "holdout": holdout}, (conditions, held_out)
        names = written_images(store, objects, value_range, given, values, store.exists(MANIFEST))
        name = hold_model(found) if not isinstance(found, str | PathLike) else str(found)
        config = AuditConfig.build(model=name, output=place, measure={"preset": preset, **measure}, **names, **given)
        try:
            yield _Asked(config, found, kept, temporary)
        except KeyboardInterrupt:
            if temporary:
                print_plain(NOT_RESUMABLE, error=True)
            raise


def _absolute(output: str) -> str:
    """Return the path of a local output as settings will have it, and a URL as it is."""
    return output if "://" in output else os.path.abspath(os.path.expanduser(output))


def _of_model(denoiser: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that follow from a model that is an object: its precision, and its kind of device."""
    precision = _NAMES.get(denoiser.precision or denoiser.dtype, "float32")
    if given.get("dtype", precision) != precision:
        raise UsageError(
            f"dtype is {given['dtype']}, and the model is in {precision}: leave dtype out, or move the model"
        )
    share = {"cpu": {"gpus_per_worker": 0}, "mps": {"gpus_per_worker": 1}}.get(denoiser.device.type, {})
    return {"dtype": precision, **share}


def _refuse_values(called: str, images: str | PathLike[str] | None, conditions: Any, embeddings: Any) -> None:
    """Raise a DataError if conditions or embeddings were given for images that are no objects, or are not there."""
    argument = "conditions" if called == "images" else f"{called}_conditions"
    if images is None and conditions is not None:
        raise DataError(f"{argument} were given, and no {called}: give its images too, or leave the conditions out")
    if conditions is not None:
        raise DataError(
            f"{called} is a name, and {argument} were given: name their column, class_column= or caption_column="
        )
    if embeddings is not None:
        raise DataError("images is a name, and embeddings were given: name their column, embedding_column=")


def written_images(
    store: Store,
    objects: dict[str, Any],
    value_range: tuple[float, float] | None,
    given: dict[str, Any],
    conditions: tuple[Any, Any],
    frozen: bool,
) -> dict[str, Any]:
    """Write the images that are objects into an output, and return where all images are, as settings.

    Args:
        store: the output.
        objects: `images` and `holdout`, objects or names; None for no held-out images.
        value_range: the numbers that stand for black and white in floating-point images.
        given: the settings; `embeddings`, and those that name columns of the objects, are taken out.
        conditions: a class or a caption for each image, and for each held-out one.
        frozen: whether an audit of the output's images has begun, so that they must be the same.
    """
    names: dict[str, Any] = {}
    digests = list[Any]()
    limits, embeddings = checked_range(value_range), given.pop("embeddings", None)
    column = given.get("class_column") or given.get("caption_column")
    for (called, images), folder, values in zip(objects.items(), ("audited", "held-out"), conditions, strict=True):
        setting = "data" if called == "images" else called
        if isinstance(images, str | PathLike) or (images is None and called == "holdout"):
            _refuse_values(called, images, values, embeddings if called == "images" else None)
            names |= {} if images is None else {setting: str(images)}
            continue
        rows = GivenImages(
            images,
            called,
            limits,
            image_column=given.get("image_column"),
            id_column=given.get("id_column") if called == "images" else None,
            condition_column=column,
            conditions=values,
            embedding_column=given.get("embedding_column") if called == "images" else None,
            embeddings=embeddings if called == "images" else None,
        )
        written = Written(store, f"{IMAGES_FOLDER}/{folder}", rows)
        digests.append(written.write(frozen))
        names |= {setting: written.url, "image_column": written.columns["image"]}
        if "embedding" in written.columns:
            names["embedding_column"] = written.columns["embedding"]
        if values is not None:
            kind = "caption" if any(isinstance(value, str) for value in values) else "class"
            names[f"{kind}_column"] = written.columns["condition"]
    if len(digests) == 2 and digests[0] == digests[1]:
        raise DataError("holdout holds the same images as images: give images that the model was not trained on")
    for name in ("image_column", "class_column", "caption_column", "embedding_column"):
        if name in names:
            given.pop(name, None)
    return names
