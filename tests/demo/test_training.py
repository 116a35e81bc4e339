"""Models that are trained on the spot."""

from pathlib import Path

import pytest

from volgrowth.demo.cases import digit_images
from volgrowth.demo.training import FEWEST, Recipe, train_model
from volgrowth.models import inspect_model


@pytest.mark.parametrize("steps", [1, FEWEST - 1, FEWEST])
def test_few_steps_are_steps(tmp_path: Path, steps: int) -> None:
    """Of 20 steps the warm-up is the first step alone, where torch's schedule divides by nothing."""
    train_model(digit_images()[:8], tmp_path / "model", 0, Recipe(channels=(8,), steps=steps, batch=2))
    assert inspect_model(str(tmp_path / "model")).image_shape == (1, 8, 8)
