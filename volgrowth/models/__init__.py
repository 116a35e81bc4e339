"""A checkpoint becomes a Denoiser: diffusers folders and hub ids, EDM networks, or a user's own factory."""

from volgrowth.models.load import inspect_model, load_model
from volgrowth.models.network import NetworkDenoiser
from volgrowth.models.parameterizations import EDM, Scheduled

__all__ = ["EDM", "NetworkDenoiser", "Scheduled", "inspect_model", "load_model"]
