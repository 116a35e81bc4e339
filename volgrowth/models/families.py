"""Classes of networks: what each is shown beside x and a label, and what it conditions on.

A family checks a configuration before weights are loaded, and wraps the loaded network as a function
(x, labels, **condition) -> output, so that nothing else knows which class of network it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from volgrowth.errors import ModelError
from volgrowth.models.files import Component
from volgrowth.models.network import Conditioner
from volgrowth.numerics.denoisers import Condition

if TYPE_CHECKING:
    from volgrowth.models.diffusers import DiffusersModel

Forward = Callable[..., Tensor]


class Family(ABC):
    """One class of networks of diffusers.

    Attributes:
        name: of the class.
    """

    name: str

    @abstractmethod
    def check(self, network: Component) -> None:
        """Raise ModelError if the configuration is not one that is measured right."""

    @abstractmethod
    def forward(self, network: torch.nn.Module, config: dict[str, Any]) -> Forward:
        """The network as a function (x, labels, **condition) -> output of x's shape."""

    @abstractmethod
    def conditioner(
        self, model: "DiffusersModel", network: torch.nn.Module, dtype: torch.dtype, device: torch.device
    ) -> Conditioner | None:
        """What turns conditions into the keyword arguments of that function; None for a family that takes none."""

    @abstractmethod
    def condition(self, config: dict[str, Any]) -> str | None:
        """`class`, `caption`, or None."""

    def whole_labels(self, config: dict[str, Any]) -> bool:
        """Whether labels are looked up in a table."""
        return False

    def unit_range(self, config: dict[str, Any]) -> bool:
        """Whether the network's images are in [0, 1]."""
        return False

    def patch(self, config: dict[str, Any]) -> int:
        """Height and width of states that are one token to the network."""
        return 1


class ClassConditioner:
    """Class labels as integers.

    Args:
        num_classes: labels run from 0 to this - 1.
        null: the label that stands for no class, None where there is none.
        device: where the network is.
    """

    kind = "class"

    def __init__(self, num_classes: int, null: int | None, device: torch.device):
        self.num_classes, self.null_label, self.device = num_classes, null, device
        self.null = null is not None

    def __call__(self, values: Sequence[Condition]) -> dict[str, Tensor]:
        labels = [self._label(value) for value in values]
        return {"class_labels": torch.tensor(labels, dtype=torch.long, device=self.device)}

    def _label(self, value: Condition) -> int:
        if value is None:
            if self.null_label is None:
                raise ModelError("the model knows no image without a class: expected a class column (--class-column)")
            return self.null_label
        if not isinstance(value, int) or not 0 <= value < self.num_classes:
            raise ModelError(f"class {value!r} is none of the model's: expected 0 to {self.num_classes - 1}")
        return value

    def overflow(self, values: Sequence[Condition]) -> list[int]:
        return [0] * len(values)


class UNet2D(Family):
    """UNet2DModel: DDPM, DDIM, score SDE and latent diffusion; without a condition, or with classes."""

    name = "UNet2DModel"

    def check(self, network: Component) -> None:
        config, path = network.config, network.folder / "config.json"
        if config.get("class_embed_type") is not None:
            raise ModelError(
                f"{path} sets class_embed_type to {config['class_embed_type']!r}: expected none, or num_class_embeds "
                f"alone; wrap this network with factory:module:function"
            )

    def forward(self, network: torch.nn.Module, config: dict[str, Any]) -> Forward:
        channels = config["in_channels"]

        def forward(x: Tensor, labels: Tensor, **condition: Tensor) -> Tensor:
            # networks that also predict a variance put it in channels of its own
            return network(x, labels, return_dict=False, **condition)[0][:, :channels]

        return forward

    def conditioner(
        self, model: "DiffusersModel", network: torch.nn.Module, dtype: torch.dtype, device: torch.device
    ) -> Conditioner | None:
        classes = model.network.config.get("num_class_embeds")
        return ClassConditioner(classes, None, device) if classes else None

    def condition(self, config: dict[str, Any]) -> str | None:
        return "class" if config.get("num_class_embeds") else None

    def whole_labels(self, config: dict[str, Any]) -> bool:
        return config.get("time_embedding_type") == "learned"

    def unit_range(self, config: dict[str, Any]) -> bool:
        return bool(config.get("center_input_sample"))


class DiT(Family):
    """DiTTransformer2DModel: classes, of which the one after the last is none (arXiv 2212.09748)."""

    name = "DiTTransformer2DModel"

    def check(self, network: Component) -> None:
        if not network.config.get("num_embeds_ada_norm"):
            raise ModelError(
                f"{network.folder / 'config.json'} has no num_embeds_ada_norm: expected the number of classes"
            )

    def forward(self, network: torch.nn.Module, config: dict[str, Any]) -> Forward:
        channels = config["in_channels"]

        def forward(x: Tensor, labels: Tensor, **condition: Tensor) -> Tensor:
            return network(x, timestep=labels, return_dict=False, **condition)[0][:, :channels]

        return forward

    def conditioner(
        self, model: "DiffusersModel", network: torch.nn.Module, dtype: torch.dtype, device: torch.device
    ) -> Conditioner | None:
        classes = model.network.config["num_embeds_ada_norm"]
        return ClassConditioner(classes, classes, device)

    def condition(self, config: dict[str, Any]) -> str | None:
        return "class"

    def patch(self, config: dict[str, Any]) -> int:
        return int(config.get("patch_size", 2))
