"""Conditions: the class labels or captions of a data set become the tensors that a conditional network takes.

A *condition* is one value of the user's class or caption column; None stands for no condition. A model has a *null
condition* if it was trained to see images without a condition too, as classifier-free guidance needs it.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from volgrowth.errors import ModelError
from volgrowth.numerics.denoisers import Condition


class Conditioner(Protocol):
    """Turns conditions into keyword arguments of a network.

    Attributes:
        kind: `class` or `caption`.
        null: True if the model has a null condition.
    """

    kind: str
    null: bool

    def __call__(self, values: Sequence[Condition]) -> dict[str, Tensor]:
        """Return the keyword arguments of the network for some conditions.

        Args:
            values: one condition per image; None stands for the null condition.

        Returns:
            Tensors by argument name, each of shape (len(values), ...).

        Raises:
            ModelError: the model cannot be given one of the values.
        """

    def problem(self, value: Condition) -> str | None:
        """Return why the model cannot be given this condition, or None if it can."""

    def overflow(self, values: Sequence[Condition]) -> list[int]:
        """Return for each condition how many of its tokens the network never sees."""


class ClassConditioner:
    """Class labels as integers.

    Args:
        num_classes: labels run from 0 to num_classes - 1.
        null: the label that stands for no class; None if the model has no null condition.
        device: the network's device, which labels are copied to.
    """

    kind = "class"

    def __init__(self, num_classes: int, null: int | None, device: torch.device):
        self.num_classes, self.null_label, self.device = num_classes, null, device
        self.null = null is not None

    def __call__(self, values: Sequence[Condition]) -> dict[str, Tensor]:
        for value in values:
            if problem := self.problem(value):
                raise ModelError(problem)
        labels = [self.null_label if value is None else value for value in values]
        return {"class_labels": torch.tensor(labels, dtype=torch.long).to(self.device, non_blocking=True)}

    def problem(self, value: Condition) -> str | None:
        if value is None:
            return None if self.null else "the model knows no image without a class: expected a class column"
        if isinstance(value, int) and 0 <= value < self.num_classes:
            return None
        return f"class {value!r} is none of the model's: expected 0 to {self.num_classes - 1}"

    def overflow(self, values: Sequence[Condition]) -> list[int]:
        return [0] * len(values)
