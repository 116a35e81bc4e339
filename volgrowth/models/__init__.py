"""A checkpoint becomes a Denoiser: diffusers folders and hub ids, EDM networks, or a user's own factory.

Names are loaded on first use: the folder of a model can be found, and compared with what was audited, without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volgrowth.models.load import inspect_model, load_model
    from volgrowth.models.network import NetworkDenoiser
    from volgrowth.models.objects.adapting import adapt
    from volgrowth.models.objects.velocities import velocity
    from volgrowth.models.parameterizations import EDM, Scheduled

_HOMES = {
    "EDM": "parameterizations",
    "NetworkDenoiser": "network",
    "Scheduled": "parameterizations",
    "adapt": "objects.adapting",
    "inspect_model": "load",
    "load_model": "load",
    "velocity": "objects.velocities",
}

__all__ = ["EDM", "NetworkDenoiser", "Scheduled", "adapt", "inspect_model", "load_model", "velocity"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'volgrowth.models' has no attribute {name!r}")
    return getattr(import_module(f"volgrowth.models.{_HOMES[name]}"), name)
