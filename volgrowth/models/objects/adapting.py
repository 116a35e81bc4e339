"""`vg.adapt`: a model of another library becomes a denoiser, in one line.

The library of an object is told by the names of its classes, so that nothing is imported that the user has not.
"""

from collections.abc import Callable
from os import PathLike
from typing import Any

import torch

from volgrowth.errors import ModelError
from volgrowth.models.objects.azula_denoisers import from_azula
from volgrowth.models.objects.karras_networks import (
    from_k_diffusion,
    from_noise_table,
    from_nvlabs,
    from_v_table,
    from_v_wrapper,
    refuse_latents,
)
from volgrowth.models.objects.loaded_pipelines import from_network, from_pipeline
from volgrowth.models.objects.lucidrains import (
    from_elucidated_diffusion,
    from_gaussian_diffusion,
    refuse_relative,
    with_checkpoint,
)
from volgrowth.models.objects.preparing import ImageShape, ValueRange
from volgrowth.models.objects.split_weights import refuse_split_weights
from volgrowth.numerics import Denoiser
from volgrowth.plain import kind_of

Adapter = Callable[[Any, ImageShape, ValueRange], Denoiser]

_LUCIDRAINS, _K_DIFFUSION = "denoising_diffusion_pytorch", "k_diffusion"
_ADAPTERS: dict[tuple[str, str], Adapter] = {
    (_LUCIDRAINS, "GaussianDiffusion"): from_gaussian_diffusion,
    (_LUCIDRAINS, "ElucidatedDiffusion"): from_elucidated_diffusion,
    ("azula", "Denoiser"): from_azula,
    (_K_DIFFUSION, "Denoiser"): from_k_diffusion,
    (_K_DIFFUSION, "VDenoiser"): from_v_wrapper,
    (_K_DIFFUSION, "DiscreteEpsDDPMDenoiser"): from_noise_table,
    (_K_DIFFUSION, "DiscreteVDDPMDenoiser"): from_v_table,
}
_REFUSED: dict[tuple[str, str], Callable[[Any], ModelError]] = {
    **{(_K_DIFFUSION, name): refuse_latents for name in ("CompVisDenoiser", "CompVisVDenoiser")},
    **{
        (_LUCIDRAINS, name): refuse_relative
        for name in (
            "LearnedGaussianDiffusion",
            "WeightedObjectiveGaussianDiffusion",
            "ContinuousTimeGaussianDiffusion",
            "VParamContinuousTimeGaussianDiffusion",
            "GaussianDiffusion1D",
            "XMWrapper",
        )
    },
}
_HOLDERS: dict[tuple[str, str], str] = {
    (_LUCIDRAINS, "Trainer"): "ema",
    ("ema_pytorch", "EMA"): "ema_model",
    ("torch", "OptimizedModule"): "_orig_mod",
    ("torch", "DataParallel"): "module",
    ("torch", "DistributedDataParallel"): "module",
    ("torch", "AveragedModel"): "module",
}
"""Attributes of what holds the model itself; of two sets of weights the moving average is taken."""
KNOWN = (
    "a volgrowth.Denoiser, a pipeline of diffusers, a network of diffusers with scheduler=, a GaussianDiffusion, "
    "ElucidatedDiffusion or Trainer of denoising_diffusion_pytorch, a denoiser of azula, a wrapper of k-diffusion, or "
    "EDM2's Precond"
)


def adapt(
    model: Any,
    *,
    scheduler: Any = None,
    image_shape: tuple[int, int, int] | None = None,
    value_range: tuple[float, float] | None = None,
    checkpoint: str | PathLike[str] | None = None,
) -> Denoiser:
    """Return the denoiser of a model of another library.

    These are known: pipelines of diffusers; networks of diffusers with the scheduler that they were trained with;
    `GaussianDiffusion` and `ElucidatedDiffusion` of lucidrains' denoising_diffusion_pytorch, and its `Trainer`, of
    which the moving average is taken; denoisers of azula; the wrappers of k-diffusion; `Precond` of EDM2 and
    `EDMPrecond` of EDM, as NVlabs' code makes them. A network of flow matching is adapted by `vg.velocity`. What
    torch.compile, DistributedDataParallel, AveragedModel or ema_pytorch wrapped is found inside.

    The network stays where it is, in its own precision, and is put into `eval()`.

    Args:
        model: the model; a denoiser is returned as it is.
        scheduler: the scheduler of diffusers that a network was trained with. Any of them will do whose class
            docs/models.md lists; a pipeline brings its own.
        image_shape: (channels, height, width) of the images, for models that do not say it themselves.
        value_range: range of the pixels that the model was trained on, (-1, 1) or (0, 1), for models that do not say it
            themselves; by default (-1, 1).
        checkpoint: a file model-N.pt that lucidrains' `Trainer` wrote: the model gets a copy of its weights, of the
            moving average if the file has it. No code in the file is run.

    Raises:
        ModelError: nothing is known about such an object, or something must be told about it; the sentence says what.
    """
    refuse_split_weights(model)
    if isinstance(model, Denoiser):
        return model
    model, names = _unwrapped(model)
    if checkpoint is not None:
        if (_LUCIDRAINS, "GaussianDiffusion") not in names and (_LUCIDRAINS, "ElucidatedDiffusion") not in names:
            raise ModelError(
                f"a checkpoint was given for {kind_of(model)}: expected a GaussianDiffusion or "
                f"ElucidatedDiffusion; load other weights into the model before you adapt it"
            )
        model = with_checkpoint(model, checkpoint)
    for name in names:
        if name in _REFUSED:
            raise _REFUSED[name](model)
        if name in _ADAPTERS:
            return _ADAPTERS[name](model, image_shape, value_range)
        if name == ("diffusers", "DiffusionPipeline"):
            return from_pipeline(model, scheduler, image_shape, value_range)
        if name == ("diffusers", "ModelMixin"):
            return from_network(model, scheduler, image_shape, value_range)
    if all(hasattr(model, name) for name in ("img_resolution", "img_channels", "sigma_data", "forward")):
        return from_nvlabs(model, image_shape, value_range)
    raise _unknown(model)


def _unwrapped(model: Any) -> tuple[Any, list[tuple[str, str]]]:
    """Return the model inside what holds it, and library and name of each of its classes, the nearest first."""
    while True:
        names = [(kind.__module__.partition(".")[0], kind.__name__) for kind in type(model).__mro__]
        holder = next((_HOLDERS[name] for name in names if name in _HOLDERS), None)
        if holder is None:
            return model, names
        if not hasattr(model, holder):
            raise ModelError(f"this {type(model).__name__} has no {holder}: give the model itself")
        model = getattr(model, holder)


def _unknown(model: Any) -> ModelError:
    what = f"the class {model.__name__}" if isinstance(model, type) else kind_of(model)
    if isinstance(model, torch.nn.Module):
        return ModelError(
            f"{what} was given, and nothing tells what its output means: use vg.velocity(network, time=..., "
            f"image_shape=...) for flow matching, or vg.NetworkDenoiser(network, vg.Scheduled(...), image_shape); "
            f"known without that are {KNOWN}"
        )
    return ModelError(f"{what} was given as a model: expected {KNOWN}; or the name of one, as a string")
