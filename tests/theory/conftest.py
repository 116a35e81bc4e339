from collections.abc import Iterator

import pytest

from volgrowth.demo import training


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Tensors here are tiny: more threads only wait for each other."""
    with training.one_thread():
        yield
