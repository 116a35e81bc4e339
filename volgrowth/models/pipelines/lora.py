"""Low-rank weights (LoRA): W + scale B A, fused into a pipeline's network and text encoders when it is loaded.

Files are read by diffusers' own loaders, so those that diffusers, peft and kohya write work, with their alphas. Every
matrix of the file must end up in the model. The loaders only warn about a matrix that fits nowhere, and the audit
would then be of another model than the user thinks.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from volgrowth.errors import ModelError, first_line
from volgrowth.models.pipelines.text import quiet


def check_lora(path: Path) -> None:
    """Raise ModelError if a file holds no low-rank weights, or a kind of them that diffusers applies only in part."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as tensors:
            names = list(tensors.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"the lora {path} cannot be read ({error}): download or save it again") from None
    if any("dora_scale" in name for name in names):
        raise ModelError(
            f"the lora {path} is a DoRA, which diffusers applies in part: fuse it where it was trained and save the "
            f"whole pipeline"
        )
    if not any("lora" in name for name in names):
        raise ModelError(
            f"the lora {path} holds no low-rank weights, but {names[0] if names else 'nothing'}: expected names with "
            f"lora in them, as diffusers, peft and kohya write them"
        )
    if importlib.util.find_spec("peft") is None:
        raise ModelError("low-rank weights need peft, which is not installed: pip install 'volgrowth[text]'")


def add_lora(pipeline: Any, path: Path) -> None:
    """Fuse low-rank weights into a pipeline's network and text encoders, in place and in their own precision.

    Args:
        pipeline: a loaded diffusers pipeline.
        path: the safetensors file.

    Raises:
        ModelError: the file belongs to another model.
    """
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    before = {name: parameter.shape for name, parameter in network.named_parameters()}
    given: dict[str, Tensor] = {}
    pipeline.lora_state_dict = _remembering(pipeline.lora_state_dict, given)
    with quiet():
        try:
            pipeline.load_lora_weights(str(path.parent), weight_name=path.name, local_files_only=True)
        except Exception as error:  # diffusers, peft and torch each raise their own kinds
            raise _other_model(path, network, first_line(error)) from None
        names = [name for name in pipeline._lora_loadable_modules if getattr(pipeline, name, None) is not None]
        modules = [getattr(pipeline, name) for name in names]
        _check_landed(path, network, modules, given)
        pipeline.fuse_lora(components=names)
        pipeline.unload_lora_weights()
    for module in modules:
        module.eval().requires_grad_(False)
    if before != {name: parameter.shape for name, parameter in network.named_parameters()}:
        raise _other_model(path, network, "it changes the shape of the network")


def _remembering(read: Callable[..., Any], given: dict[str, Tensor]) -> Callable[..., Any]:
    """Wrap a loader's function that reads a file, so that `given` collects the matrices under the loader's names."""

    def remember(*args: Any, **options: Any) -> Any:
        found = read(*args, **options)
        matrices = found if isinstance(found, dict) else found[0]
        given.update({name: tensor for name, tensor in matrices.items() if not name.endswith("alpha")})
        return found

    return remember


def _check_landed(path: Path, network: Any, modules: Iterable[Any], given: dict[str, Tensor]) -> None:
    """Check that each matrix is now a parameter of a module. Loaders rename matrices, so contents are compared."""
    precision = network.dtype if network.dtype.itemsize < 4 else torch.float32
    parameters = (pair for module in modules for pair in module.named_parameters())
    landed = {_content(tensor, precision) for name, tensor in parameters if "lora" in name}
    lost = [name for name, tensor in given.items() if _content(tensor, precision) not in landed]
    if lost:
        raise _other_model(path, network, f"there is no place for {len(lost)} of its tensors, {lost[0]} among them")


def _content(tensor: Tensor, precision: torch.dtype) -> bytes:
    """Return a digest of a tensor's numbers in the given precision."""
    flat = tensor.detach().to("cpu", precision).flatten().contiguous()
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).digest()


def _other_model(path: Path, network: Any, reason: str) -> ModelError:
    return ModelError(
        f"the lora {path} does not belong to this {type(network).__name__} ({reason.strip(' .')}): expected one that "
        f"was trained on the same network"
    )
