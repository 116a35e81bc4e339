"""Networks whose weights lie in pieces in several processes, as FSDP and DeepSpeed's stage 3 leave them.

One process alone cannot evaluate such a network: it would wait for the others, which wait for it elsewhere.
"""

import torch

from volgrowth.errors import ModelError
from volgrowth.models.weight_digest import modules_behind

_WRAPPER = "FullyShardedDataParallel"


def refuse_split_weights(model: object) -> None:
    """Raise a ModelError if a network behind an object has its weights split over the processes of a training."""
    for module in modules_behind(model):
        if how := _split_by(module):
            raise ModelError(
                f"the weights of this {type(module).__name__} are split over the processes of a training ({how}), and "
                f"an audit computes in one process: gather them there with get_model_state_dict of "
                f"torch.distributed.checkpoint.state_dict (full_state_dict=True, cpu_offload=True), called by every "
                f"process, load them into a network that is not split, and give that one; or audit a saved checkpoint"
            )


def _split_by(module: torch.nn.Module) -> str | None:
    """Return what split the weights that a module itself holds; None if they are whole."""
    if any(kind.__name__ == _WRAPPER and kind.__module__.startswith("torch.") for kind in type(module).__mro__):
        return "FSDP"
    for weight in module.parameters(recurse=False):
        if type(weight).__name__ == "DTensor":  # of fully_shard, and of tensor parallelism
            return "FSDP or tensor parallelism"
        if hasattr(weight, "ds_id"):
            return "DeepSpeed's stage 3"
    return None
