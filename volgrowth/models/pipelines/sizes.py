"""Configurations beside the headers of their weights, compared before anything is allocated.

A configuration of a few bytes can ask for a network of any size. So the network is first made without memory, on
torch's `meta` device, and must have the tensors that the weights hold. Before that, the header bounds how many layers
are made.
"""

from math import prod
from typing import Any

import torch

from volgrowth.errors import ModelError, first_line
from volgrowth.models.checkpoint_files import LARGEST_IMAGE, Component
from volgrowth.models.pipelines.text import quiet

MOST_TOKENS = 2**16
"""Most tokens of a table of positions that is made on the spot, as DiT's: 256 x 256."""

# entries of text encoders that are sides of their matrices, and that count layers
_SIDES = ("vocab_size", "hidden_size", "intermediate_size", "d_model", "d_ff")
_LAYERS = ("num_hidden_layers", "num_layers")


def check_network_size(component: Component, kind: Any) -> None:
    """Check that the weights of a network or autoencoder are those that its configuration asks for.

    Args:
        component: the folder of the network.
        kind: its class in diffusers.

    Raises:
        ModelError: the configuration makes no network, or one of other sizes than the weights.
    """
    where, shapes = component.folder / "config.json", component.shapes()
    _check_layers(component, shapes)
    _check_positions(component, shapes)
    try:
        with torch.device("meta"), quiet():
            expected = {
                name: tuple(tensor.shape) for name, tensor in kind.from_config(component.config).state_dict().items()
            }
    except Exception as error:  # blocks and layers each refuse settings in their own way
        raise ModelError(f"{where} makes no {component.kind} ({first_line(error)}): save the network again") from None
    other = [name for name, shape in expected.items() if shapes.get(name, shape) != shape]
    if other:
        name = other[0]
        raise ModelError(
            f"{where} asks for another network than the weights beside it: {len(other)} tensors are of other shapes, "
            f"such as {name} with {_times(expected[name])} in place of {_times(shapes[name])}; use the config.json "
            f"that they were saved with"
        )
    asked, held = (sum(map(prod, found.values())) for found in (expected, shapes))
    if asked > 2 * held:
        raise ModelError(
            f"{where} asks for a network of {asked:,} parameters, and the weights beside it hold {held:,}: use the "
            f"config.json that they were saved with"
        )


def check_encoder_size(component: Component) -> None:
    """Check that the sizes in a text encoder's configuration are sides of its matrices.

    Raises:
        ModelError: they are not.
    """
    config, shapes = component.config, component.shapes()
    sides = {side for shape in shapes.values() for side in shape}
    names = [*_SIDES, *(["projection_dim"] if "text_projection.weight" in shapes else [])]
    wrong = [name for name in names if name in config and config[name] not in sides]
    wrong += [name for name in _LAYERS if not _count(config.get(name, 0)) <= len(shapes)]
    if wrong:
        raise ModelError(
            f"{component.folder / 'config.json'} has {wrong[0]} {config[wrong[0]]!r}, and the weights beside it are of "
            f"other sizes: use the config.json that they were saved with"
        )


def check_image_size(where: object, height: Any, width: Any) -> None:
    """Raise ModelError unless a size of images in pixels is one that a model can have."""
    for side in (height, width):
        if not isinstance(side, int) or isinstance(side, bool) or not 1 <= side <= LARGEST_IMAGE:
            raise ModelError(
                f"{where} asks for images of {height} x {width} pixels: expected 1 to {LARGEST_IMAGE} pixels a side"
            )


def _check_layers(component: Component, shapes: dict[str, tuple[int, ...]]) -> None:
    """Check that no list is longer, and that there are no more layers, than the weights have tensors."""
    for name, value in component.config.items():
        blocks = len(component.config.get("down_block_types") or (1,)) if isinstance(value, int) else 1
        many = _count(value) * blocks if "layers" in name else len(value) if isinstance(value, list) else 0
        if many > len(shapes) and name not in ("latents_mean", "latents_std"):
            raise ModelError(
                f"{component.folder / 'config.json'} has {name} {str(value)[:60]}, and the weights beside it hold "
                f"{len(shapes)} tensors: use the config.json that they were saved with"
            )


def _check_positions(component: Component, shapes: dict[str, tuple[int, ...]]) -> None:
    """Check tables of positions, which some networks compute when they are made."""
    config, where = component.config, component.folder / "config.json"
    patch = config.get("patch_size") or 1
    side = config.get("pos_embed_max_size")
    table = shapes.get("pos_embed.pos_embed")
    if side and table and side * side != table[1]:
        raise ModelError(
            f"{where} has pos_embed_max_size {side}, and the weights beside it hold {table[1]} positions: use the "
            f"config.json that they were saved with"
        )
    size = config.get("sample_size")
    if component.kind == "DiTTransformer2DModel" and isinstance(size, int) and (size // patch) ** 2 > MOST_TOKENS:
        raise ModelError(f"{where} has sample_size {size}: expected at most {MOST_TOKENS} tokens of {patch} x {patch}")


def _count(value: Any) -> int:
    """Return the sum of all whole numbers in a value, which may hold lists of lists."""
    if isinstance(value, list | tuple):
        return sum(map(_count, value))
    return value if isinstance(value, int) else 0


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"
