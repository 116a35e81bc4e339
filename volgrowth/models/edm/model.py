"""EDM models: a folder with config.json, which uses NVlabs' own names, and model.safetensors.

config.json of a class-conditional CIFAR-10 network, as `volgrowth.models.edm.nvlabs.convert_pickle` writes it or as a
user writes it beside the weights of an EDM-preconditioned network that was trained elsewhere:

    {"_class_name": "EDMPrecond", "sigma_data": 0.5,                       the preconditioning, with its numbers
     "img_resolution": 32, "img_channels": 3, "label_dim": 10,             images in [-1, 1], and classes
     "model_type": "SongUNet", "channel_mult": [2, 2, 2], "augment_dim": 9}      the network, with its arguments

Omitted settings have NVlabs' defaults. model.safetensors is the state dict of the preconditioned network
(`model.enc...`) or of the network alone (`enc...`). Everything is checked from the JSON and the headers of the weights:
a network with empty weights tells the names and shapes of the tensors that belong to it.

Classes are one-hot vectors, and no class is the vector of zeros. A network was trained on that vector only if
label_dropout is above 0. NVlabs' published networks were not, though their sampler falls back to it; to measure them
without classes all the same, set label_dropout in config.json.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import one_hot

from volgrowth.errors import ModelError
from volgrowth.models.checkpoint_files import (
    LARGEST_IMAGE,
    Component,
    check_weights_finite,
    model_digest,
    read_json,
    unreadable,
)
from volgrowth.models.conditioning import ClassConditioner
from volgrowth.models.edm.preconditioning import PRECONDITIONINGS, Preconditioning
from volgrowth.models.edm.unets import ARCHITECTURES, Architecture, UNet
from volgrowth.models.network import NetworkDenoiser
from volgrowth.models.recognition import is_training_state, pickles
from volgrowth.models.tensor_names import plain_name
from volgrowth.numerics.denoisers import Condition
from volgrowth.records import ModelInfo

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

STEM = "model"
# in the state dict of a preconditioned network: the network, and a table of levels that follows from the configuration
PREFIX, TABLE = "model.", "u"


class Interface(BaseModel):
    """Entries of config.json that every network has. `use_fp16` is ignored: here the user chooses the precision."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    img_resolution: PositiveInt
    img_channels: Literal[1, 3]
    label_dim: int = Field(0, ge=0)
    model_type: str
    use_fp16: bool = False


class OneHot(ClassConditioner):
    """Class labels as one-hot rows, and no class as a row of zeros.

    Args:
        num_classes: labels run from 0 to num_classes - 1.
        null: True if the network knows images without a class.
        device: the network's device.
    """

    def __init__(self, num_classes: int, null: bool, device: torch.device):
        super().__init__(num_classes, num_classes if null else None, device)

    def __call__(self, values: Sequence[Condition]) -> dict[str, Tensor]:
        labels = super().__call__(values)["class_labels"]
        return {"class_labels": one_hot(labels, self.num_classes + 1)[:, : self.num_classes]}

    def problem(self, value: Condition) -> str | None:
        if value is None and not self.null:
            return (
                "the model was trained without label_dropout and knows no image without a class: expected a class "
                "column, or label_dropout above 0 in its config.json to show it a class of zeros"
            )
        return super().problem(value)


@dataclass(frozen=True)
class EDMFolder:
    """An EDM model that passed every check that needs no weights in memory.

    Attributes:
        component: the folder's files.
        interface, preconditioning, architecture: the three parts of its config.json.
    """

    component: Component
    interface: Interface
    preconditioning: Preconditioning
    architecture: Architecture

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images, which are also the network's states."""
        return self.interface.img_channels, self.interface.img_resolution, self.interface.img_resolution

    @property
    def has_null(self) -> bool:
        """True if the network supports images without a condition."""
        return not self.interface.label_dim or self.architecture.label_dropout > 0

    def info(self, name: str) -> ModelInfo:
        """Return what the manifest records about the model that the user calls `name`."""
        return ModelInfo(
            name=name,
            kind=self.component.kind,
            image_shape=self.image_shape,
            hash=model_digest([self.component.config], self.component.weights),
            parameters=self.component.num_parameters,
            condition="class" if self.interface.label_dim else None,
            has_null=self.has_null,
            notes=tuple(self.component.notes()),
        )

    def empty_network(self) -> UNet:
        """Return the network without memory for its weights.

        Raises:
            ValueError: the configuration makes no network.
        """
        channels, resolution, _ = self.image_shape
        outputs = self.preconditioning.outputs(channels)
        with torch.device("meta"):
            return self.architecture.network(resolution, channels, outputs, self.interface.label_dim)

    def load(self, dtype: torch.dtype, precision: torch.dtype, device: torch.device) -> NetworkDenoiser:
        """Load the weights, frozen, and return the denoiser.

        Args:
            dtype: precision of states and all sums: float32 or float64.
            precision: precision of the network.
            device: where the network is loaded to.

        Raises:
            ModelError: the weights are damaged.
        """
        network = self.empty_network()
        try:
            tensors = {name: tensor for path in self.component.weights for name, tensor in load_file(path).items()}
            network.load_state_dict(_own_names(tensors), assign=True)
        except Exception as error:  # safetensors and torch each raise their own kinds
            raise unreadable(self.component.folder, error) from None
        check_weights_finite(self.component.folder, network)
        for name, part in network.named_children():
            # random frequencies are large, so rounding them to a low precision would change the embedding
            part.to(device, dtype if name == "map_noise" else precision)
        network.eval().requires_grad_(False)
        return self._denoiser(network, dtype, precision, device)

    def _denoiser(
        self, network: UNet, dtype: torch.dtype, precision: torch.dtype, device: torch.device
    ) -> NetworkDenoiser:
        channels, classes = self.interface.img_channels, self.interface.label_dim
        conditioner = OneHot(classes, self.has_null, device) if classes else None

        def forward(x: Tensor, labels: Tensor, **condition: Tensor) -> Tensor:
            return network(x, labels, **condition)[:, :channels]

        denoiser = NetworkDenoiser(
            forward,
            self.preconditioning.parameterization(),
            self.image_shape,
            precision=precision,
            conditioner=conditioner,
            sampling_levels=self.preconditioning.sampling_levels,
        )
        denoiser.device, denoiser.dtype = device, dtype
        return denoiser


def is_edm(folder: Path) -> bool:
    """Return True if `inspect_edm` reads this folder: an EDM config.json, or nothing but a pickle."""
    if not (folder / "config.json").is_file():
        return not (folder / "model_index.json").is_file() and bool(pickles(folder)) and not is_training_state(folder)
    config = read_json(folder / "config.json")
    return "img_resolution" in config or str(config.get("_class_name")).endswith("Precond")


def inspect_edm(folder: Path) -> EDMFolder:
    """Check a folder with an EDM model.

    Raises:
        ModelError: something is missing or not supported; the sentence names it and the fix.
    """
    _refuse_pickles(folder)
    component = Component.of(folder, STEM)
    where, values = folder / "config.json", dict(component.config)
    values.pop("_class_name", None)
    preconditioning = _named(PRECONDITIONINGS, component.kind, f"{where} has _class_name")
    architecture = _named(ARCHITECTURES, values.get("model_type"), f"{where} has model_type")
    model = EDMFolder(
        component,
        _part(Interface, values, where),
        _part(preconditioning, values, where),
        _part(architecture, values, where, rest=True),
    )
    try:
        model.preconditioning.parameterization()
        _check_counts(model, where)
        network = model.empty_network()
    except (ValueError, ZeroDivisionError, RuntimeError, OverflowError, TypeError) as error:
        raise ModelError(f"{where} makes no network ({error}): expected the arguments it was trained with") from None
    _check_weights(component, network)
    return model


def _check_counts(model: EDMFolder, where: Path) -> None:
    """Check numbers that decide how many layers are made, since layers without weights cost time and memory too."""
    architecture, tensors = model.architecture.model_dump(), len(model.component.shapes())
    blocks, levels = architecture.get("num_blocks", 1), len(architecture.get("channel_mult", ()))
    if model.interface.img_resolution > LARGEST_IMAGE:
        raise ModelError(
            f"{where} has img_resolution {model.interface.img_resolution}: expected at most {LARGEST_IMAGE} pixels"
        )
    if blocks * max(levels, 1) > tensors:
        raise ModelError(
            f"{where} asks for {blocks} blocks on each of {levels} levels, and the weights beside it hold {tensors} "
            f"tensors: use the config.json that they were saved with"
        )


def _refuse_pickles(folder: Path) -> None:
    """Raise ModelError, with the command that converts it, if a folder has a pickle and no safetensors."""
    pickle = next(iter(pickles(folder)), None)
    if pickle and not any(folder.glob(f"{STEM}*.safetensors")):
        raise ModelError(
            f"{folder} holds the pickle {pickle.name}, which can run code when opened, and no {STEM}.safetensors: "
            f"convert it with `volgrowth convert {pickle} NEW_FOLDER --allow-pickle`"
        )


def _named(classes: dict[str, T], name: Any, what: str) -> T:
    """Return the class of this name."""
    if name not in classes:
        raise ModelError(
            f"{what} {name!r}: expected one of {', '.join(classes)}; for any other model write factory:module:function"
        )
    return classes[name]


def _part(kind: type[M], values: dict[str, Any], where: Path, rest: bool = False) -> M:
    """Take the settings of one part, or all that are left if `rest`, out of the values and validate them."""
    own = {name: values.pop(name) for name in list(values) if rest or name in kind.model_fields}
    try:
        return kind(**own)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "missing":
            raise ModelError(f"{where} lacks {name}: expected the value that the network was trained with") from None
        if first["type"] == "extra_forbidden":
            known = ", ".join(sorted(kind.model_fields))
            raise ModelError(f"{where} has {name}, which is no argument of {kind.__name__}: expected {known}") from None
        if name == "img_channels":
            raise ModelError(
                f"{where} has img_channels {first['input']!r}: expected 1 or 3, since images are gray or RGB; wrap a "
                f"network on anything else with factory:module:function"
            ) from None
        reason = first["msg"].removeprefix("Input should be ")
        raise ModelError(f"{where} has {name} {first['input']!r}: expected {reason}") from None


def _own_names(tensors: dict[str, T]) -> dict[str, T]:
    """Return tensors by their names in the network alone, whichever of the two state dicts they come from."""
    found = {plain_name(name): tensor for name, tensor in tensors.items() if plain_name(name) != TABLE}
    if not all(name.startswith(PREFIX) for name in found):
        return found
    return {name.removeprefix(PREFIX): tensor for name, tensor in found.items()}


def _check_weights(component: Component, network: UNet) -> None:
    """Check that the names and shapes in the headers are those of the network."""
    found = _own_names(component.shapes())
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for names, problem in (
        (expected.keys() - found.keys(), "lack {} tensors of the network"),
        (found.keys() - expected.keys(), "hold {} tensors that the network has no place for"),
        ({name for name in expected if expected[name] != found.get(name)}, "hold {} tensors of other shapes"),
    ):
        if names:
            raise ModelError(
                f"the weights in {component.folder} {problem.format(len(names))}, {min(names)} among them: they belong "
                f"to another config.json"
            )
