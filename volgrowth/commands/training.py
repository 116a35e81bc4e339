"""A callback for training loops: every so many steps it audits a sample of the training set.

The images are written once, when the callback is made, so that what is wrong with them or with a setting is an error
before the training begins. From then on nothing that goes wrong in an audit ends the training, and no audit changes it:
networks go back to training, weights to where they were, and random numbers go on as without the audit.
"""

import operator
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np
import torch

from volgrowth.audit.output.result import REPORT_FILE, Audit
from volgrowth.commands.audit import print_opened
from volgrowth.commands.in_memory import audit_images, written_images
from volgrowth.config import AuditConfig
from volgrowth.errors import UsageError, VolgrowthError, kind_and_line
from volgrowth.models.objects.adapting import adapt as known_model
from volgrowth.models.objects.held_models import at_rest
from volgrowth.models.objects.split_weights import refuse_split_weights
from volgrowth.plain import kind_of, plain, print_plain
from volgrowth.report.words import headline_lines
from volgrowth.sources.given.containers import GivenImages
from volgrowth.storage.store import Store

ROWS, BATCH_SIZE = 1000, 64
STEP_FOLDER = "step-{:08d}"
"""Folders whose names sort by the step, so that a shell lists them in their order."""


class AuditCallback:
    """Audits a sample of the training set every so many steps of a training, without disturbing the training.

    A training loop calls `on_step` once a step; for PyTorch Lightning the trainer is given what `lightning` returns.
    Each audit is an output of its own, OUTPUT/step-00001000 and so on, so that `volgrowth trend OUTPUT/step-*` shows
    the whole run. In a distributed training only the process of rank 0 audits, and the others wait for it where they
    next exchange gradients.

    Args:
        images: the training set, as `audit_images` takes it, but no stream: a sample is drawn from it.
        holdout: similar images that the model is not trained on; all of them are measured in every audit.
        output: folder or URL for the audits and their images.
        every: number of steps between two audits.
        rows: size of the sample; None for all images.
        adapt: function from the network that is trained to a model that `audit_images` takes; by default `vg.adapt`. A
            network of diffusers needs one that says the scheduler: `lambda network: vg.adapt(network, scheduler=...)`.
        value_range: as for `audit_images`.
        conditions: as for `audit_images`.
        holdout_conditions: as for `audit_images`.
        **settings: further settings, as for `audit_images`. The sample is drawn by `seed`.

    Attributes:
        flagged: by step, how many distinct images of the sample were flagged; None where no image could be judged.
        failed: by step, why there is no audit.

    Raises:
        UsageError: a setting is wrong.
        DataError: images are none, or others than those that earlier audits in `output` measured.
    """

    def __init__(
        self,
        images: Any,
        holdout: Any = None,
        *,
        output: str | PathLike[str],
        every: int,
        rows: int | None = ROWS,
        adapt: Callable[[Any], Any] = known_model,
        value_range: tuple[float, float] | None = None,
        conditions: Sequence[str | int | None] | None = None,
        holdout_conditions: Sequence[str | int | None] | None = None,
        **settings: Any,
    ):
        self.every, rows = _whole("every", every), None if rows is None else _whole("rows", rows)
        self.adapt = _function("adapt", adapt)
        if not isinstance(output, str | PathLike):
            raise UsageError(f"output is {output!r}: expected a folder or a URL")
        self.flagged: dict[int, int | None] = {}
        self.failed: dict[int, str] = {}
        self._caveats = set[str]()
        # a search for the fastest size would take memory beside the training, at every audit anew
        self.settings = {"batch_size": BATCH_SIZE, **settings}
        self.store = Store(str(output))
        _check_settings(self.settings, str(output), holdout is not None)
        images, conditions = _sample(images, rows, settings.get("seed", 0), conditions, self.settings)
        names, values = {"images": images, "holdout": holdout}, (conditions, holdout_conditions)
        begun = any(name.startswith("step-") for name in self.store.names(""))
        self.names = written_images(self.store, names, value_range, self.settings, values, begun) if _is_first() else {}

    def on_step(self, step: int, model: Any, ema: Any = None) -> Audit | None:
        """Audit the sample if this step is one of every so many; call it after each step of the optimizer.

        Args:
            step: the number of steps that were made, from 1 on.
            model: the network that is trained, or what `adapt` takes; what accelerate, DistributedDataParallel or
                torch.compile made of it will do.
            ema: its moving average, to be audited in its place: an `EMAModel` of diffusers, whose weights the network
                gets for the audit, or a module with these weights, such as torch's `AveragedModel`.

        Returns:
            The audit; None where none was due, and where it failed: `failed` says why.

        Raises:
            UsageError: `step` is no whole number.
        """
        return self._on_step(step, lambda: (model, ema))

    def lightning(
        self, model: Callable[[Any], Any] = lambda module: module, ema: Callable[[Any], Any] = lambda module: None
    ) -> Any:
        """Return a callback for `Trainer(callbacks=[...])` of PyTorch Lightning, which audits by `trainer.global_step`.

        Args:
            model: function from the `LightningModule` to the network that `adapt` takes; by default the module itself.
            ema: function from the `LightningModule` to the moving average, as for `on_step`.

        Raises:
            UsageError: neither lightning nor pytorch_lightning is installed.
        """
        audits, model, ema = self, _function("model", model), _function("ema", ema)

        class LightningAudit(_lightning_callback()):  # type: ignore[misc]
            """Calls the audit after each batch of a training."""

            def on_train_batch_end(self, trainer: Any, pl_module: Any, *batch: Any, **more: Any) -> None:
                audits._on_step(trainer.global_step, lambda: (model(pl_module), ema(pl_module)))

        return LightningAudit()

    def _on_step(self, step: int, given: Callable[[], tuple[Any, Any]]) -> Audit | None:
        step = _whole("step", step, 0)
        done = step in self.flagged or step in self.failed  # Lightning counts a step over several batches
        if step < 1 or step % self.every or done or not _is_first():
            return None
        try:
            with _undisturbed():
                audit = self._audit(step, *given())
        except Exception as error:  # of any kind: the training is worth more than one audit
            why = str(error) if isinstance(error, VolgrowthError) else kind_and_line(error)
            self.failed[step] = why
            print_plain(f"step {step}: there is no audit, and the training goes on: {plain(why)}", error=True)
            return None
        if not self.flagged:
            print_opened(audit.frozen)
        detection = audit.summary["detection"]
        self.flagged[step] = detection["memorized"] if detection and detection["tests"] else None
        headline, *caveats = headline_lines(audit.summary)
        new = [caveat for caveat in caveats if caveat not in self._caveats]
        self._caveats.update(new)
        print_plain("\n".join([f"step {step}: {headline}; report: {audit.store.path(REPORT_FILE)}", *new]))
        return audit

    def _audit(self, step: int, model: Any, ema: Any) -> Audit:
        output = self.store.path(STEP_FOLDER.format(step))
        images, holdout = self.names["data"], self.names.get("holdout")
        columns = {name: value for name, value in self.names.items() if name not in ("data", "holdout")}
        refuse_split_weights([model, ema])
        with _averaged(model, ema) as weights, at_rest(weights):
            return audit_images(
                self.adapt(weights), images, holdout, output, quiet=True, **{**self.settings, **columns}
            )


def _whole(name: str, number: Any, least: int = 1) -> int:
    """Return a whole number of any library as an int; a UsageError for other things, and for less than the least."""
    try:
        found = -1 if isinstance(number, bool) else operator.index(number)
    except TypeError:
        found = -1
    if found < least:
        raise UsageError(f"{name} is {number!r}: expected a whole number from {least} on")
    return found


def _function(name: str, given: Any) -> Any:
    if not callable(given):
        raise UsageError(f"{name} is {given!r}: expected a function")
    return given


def _check_settings(settings: dict[str, Any], output: str, held_out: bool) -> None:
    """Refuse settings that an audit would refuse, and those that the callback itself gives."""
    if own := {"model", "data", "quiet", "progress"} & settings.keys():
        raise UsageError(f"setting {min(own)} is not one of the callback, which gives it to each audit: leave it out")
    checked, measure = dict(settings), settings.get("measure", {})
    preset = checked.pop("preset", "standard")
    checked["measure"] = {"preset": preset, **measure} if isinstance(measure, Mapping) else measure
    AuditConfig.build(model="model", data="data", output=output, holdout="holdout" if held_out else None, **checked)


def _sample(
    images: Any, rows: int | None, seed: int, conditions: Sequence[Any] | None, settings: dict[str, Any]
) -> tuple[Any, Sequence[Any] | None]:
    """Return so many of the images, drawn at random and in their order, and the conditions of these."""
    if isinstance(images, str | PathLike) and rows is not None:
        raise UsageError(
            f"images is {str(images)!r}, a name, of which no sample is drawn: give the data set itself, as "
            f"datasets.load_dataset returns it, or rows=None to audit all of it at every audit"
        )
    if rows is None:
        return images, conditions
    GivenImages(images, image_column=settings.get("image_column"))  # refuses what is no set of images
    if not hasattr(images, "__len__"):
        raise UsageError(
            f"images is {kind_of(images)}, which does not say how many it has: give a data set with a length, "
            f"or rows=None to audit all of it at every audit"
        )
    if conditions is not None and not hasattr(conditions, "__len__"):
        raise UsageError(f"conditions is {conditions!r}: expected a class or a caption for each image")
    if conditions is not None and len(conditions) != len(images):
        raise UsageError(f"{len(images)} images, and {len(conditions)} conditions: expected as many")
    if len(images) <= rows:
        return images, conditions
    chosen = np.sort(np.random.default_rng(seed).choice(len(images), rows, replace=False)).tolist()
    some = None if conditions is None else [conditions[index] for index in chosen]
    if hasattr(images, "select"):  # of datasets
        return images.select(chosen), some
    if hasattr(images, "shape"):
        return images[chosen], some
    return torch.utils.data.Subset(images, chosen), some


def _is_first() -> bool:
    """Return whether this process is the one of rank 0 in its training, as far as can be known by now."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return os.environ.get("RANK", "0") in ("", "0")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Leave the random numbers of Python, numpy and torch as they were, and compute outside torch's mixed precision."""
    states = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with (
            torch.random.fork_rng(devices),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def _averaged(model: Any, ema: Any) -> Iterator[Any]:
    """Give the model with the weights of its moving average, and put its own weights back in the end.

    Raises:
        UsageError: the average is none that is known, or not one of this model.
    """
    if ema is None or isinstance(ema, torch.nn.Module):
        yield model if ema is None else ema
        return
    if not hasattr(ema, "copy_to") or not hasattr(ema, "shadow_params"):
        raise UsageError(
            f"ema is {kind_of(ema)}: expected an EMAModel of diffusers, or a module with the averaged weights"
        )
    if not isinstance(model, torch.nn.Module):
        raise UsageError(f"ema was given for {kind_of(model)}: give the network whose weights it averages")
    weights = list(model.parameters())
    if [weight.shape for weight in weights] != [weight.shape for weight in ema.shadow_params]:
        raise UsageError("ema averages other weights than those of the model: expected as many, of the same shapes")
    own = [weight.detach().to("cpu", copy=True) for weight in weights]  # memory of the device is the training's
    try:
        ema.copy_to(weights)
        yield model
    finally:
        for weight, values in zip(weights, own, strict=True):
            weight.data.copy_(values)


def _lightning_callback() -> type:
    """Return the base class of callbacks of the Lightning that is installed."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            found: type = __import__(name, fromlist=["Callback"]).Callback
        except ImportError:
            continue
        return found
    raise UsageError("PyTorch Lightning is not installed: pip install lightning")
