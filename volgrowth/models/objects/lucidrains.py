"""lucidrains' denoising-diffusion-pytorch: `GaussianDiffusion`, `ElucidatedDiffusion`, and checkpoints of `Trainer`."""

import pickle
import zipfile
from copy import deepcopy
from os import PathLike
from typing import Any

import torch

from volgrowth.errors import ModelError, first_line
from volgrowth.models.edm.preconditioning import karras_levels
from volgrowth.models.network import NetworkDenoiser
from volgrowth.models.objects.preparing import ImageShape, ValueRange, network_denoiser
from volgrowth.models.parameterizations import EDM, PredictionType, Scheduled
from volgrowth.numerics import DDPMSchedule

# what the objective makes the network predict; v = alpha e - sigma x_0 there too
OBJECTIVES: dict[str, PredictionType] = {
    "pred_noise": "epsilon",
    "pred_x0": "sample",
    "pred_v": "v_prediction",
}
_AVERAGE = "ema_model."
_HOME = "denoising_diffusion_pytorch.denoising_diffusion_pytorch"


def from_gaussian_diffusion(diffusion: Any, image_shape: ImageShape, value_range: ValueRange) -> NetworkDenoiser:
    """Return the denoiser of a `GaussianDiffusion`: a table of betas, and whole steps as labels.

    Raises:
        ModelError: it is another class of that name, or it does not say the range of its pixels.
    """
    if not any(
        f"{kind.__module__}.{kind.__name__}" == f"{_HOME}.GaussianDiffusion" for kind in type(diffusion).__mro__
    ):
        raise refuse_relative(diffusion)
    if value_range is None and diffusion.normalize(torch.zeros(())).item() != -1:
        raise ModelError(
            "this GaussianDiffusion has auto_normalize=False, so that it does not say the range of the pixels that it "
            "was trained on: give value_range=(-1, 1), or value_range=(0, 1) as Trainer's own data set has it"
        )
    try:
        schedule = DDPMSchedule(diffusion.alphas_cumprod.detach().cpu().double())
    except ValueError as error:
        raise ModelError(f"the betas of this GaussianDiffusion make no noise schedule ({error})") from None
    return network_denoiser(
        diffusion.model,
        Scheduled.on_table(schedule, OBJECTIVES[diffusion.objective]),
        image_shape or (diffusion.channels, *diffusion.image_size),
        value_range,
        "GaussianDiffusion",
    )


def from_elucidated_diffusion(diffusion: Any, image_shape: ImageShape, value_range: ValueRange) -> NetworkDenoiser:
    """Return the denoiser of an `ElucidatedDiffusion`: EDM's preconditioning of images in [-1, 1]."""
    low, high = float(diffusion.sigma_min), float(diffusion.sigma_max)
    size = diffusion.image_size
    return network_denoiser(
        diffusion.net,
        EDM(float(diffusion.sigma_data), (low, high)),
        image_shape or (diffusion.channels, *(size if isinstance(size, tuple | list) else (size, size))),
        value_range,
        "ElucidatedDiffusion",
        sampling_levels=lambda steps: karras_levels(low, high, steps),
    )


def refuse_relative(diffusion: Any) -> ModelError:
    """Return the error for the library's other classes."""
    return ModelError(
        f"{type(diffusion).__module__}.{type(diffusion).__name__} predicts more than an image, or takes further "
        f"inputs: expected a GaussianDiffusion or an ElucidatedDiffusion of denoising_diffusion_pytorch; wrap its "
        f"network with vg.NetworkDenoiser(network, vg.Scheduled(...), image_shape)"
    )


def with_checkpoint(diffusion: Any, path: str | PathLike[str]) -> Any:
    """Return a copy of a diffusion with the weights that `Trainer` saved: the moving average, else the plain ones.

    Raises:
        ModelError: the file cannot be read without running code, or holds the weights of another network.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"checkpoint {path} cannot be read ({first_line(error)}): expected a file model-N.pt of lucidrains' Trainer"
        ) from None
    state = content.get("ema") if isinstance(content, dict) else None
    weights = {name.removeprefix(_AVERAGE): tensor for name, tensor in (state or {}).items() if _AVERAGE in name[:10]}
    if not weights and isinstance(content, dict) and isinstance(content.get("model"), dict):
        weights = content["model"]
    if not weights:
        raise ModelError(f"checkpoint {path} has neither ema nor model: expected model-N.pt of lucidrains' Trainer")
    other = deepcopy(diffusion)
    try:
        other.load_state_dict(weights)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"checkpoint {path} holds the weights of another network ({' '.join(str(error).split())[:200]}): build the "
            f"diffusion as it was built for the training"
        ) from None
    return other
