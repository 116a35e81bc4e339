"""EDM networks (arXiv 2206.00364) from safetensors and a small JSON, and a converter of NVlabs' pickles."""

from volgrowth.models.edm.model import EDMFolder, inspect_edm, is_edm
from volgrowth.models.edm.nvlabs import convert_pickle

__all__ = ["EDMFolder", "convert_pickle", "inspect_edm", "is_edm"]
