"""EDM networks (arXiv 2206.00364), read from safetensors and a small JSON, and a converter for NVlabs' pickles."""

from volgrowth.models.edm.model import EDMFolder, inspect_edm, is_edm
from volgrowth.models.edm.nvlabs import convert_pickle

__all__ = ["EDMFolder", "convert_pickle", "inspect_edm", "is_edm"]
