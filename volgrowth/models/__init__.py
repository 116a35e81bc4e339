"""A checkpoint becomes a Denoiser: diffusers folders and hub ids, or a user's own factory."""

from volgrowth.models.load import ModelInfo, inspect_model, load_model
from volgrowth.models.network import NetworkDenoiser

__all__ = ["ModelInfo", "NetworkDenoiser", "inspect_model", "load_model"]
