"""A checkpoint becomes a Denoiser: diffusers folders and hub ids, or a user's own factory."""

from volgrowth.models.load import inspect_model, load_model
from volgrowth.models.network import NetworkDenoiser

__all__ = ["NetworkDenoiser", "inspect_model", "load_model"]
