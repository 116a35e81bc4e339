"""EDM networks (arXiv 2206.00364) from safetensors and a small JSON, and a converter of NVlabs' pickles."""

from volgrowth.models.edm.model import EDMModel, inspect_edm, is_edm
from volgrowth.models.edm.nvlabs import convert

__all__ = ["EDMModel", "convert", "inspect_edm", "is_edm"]
