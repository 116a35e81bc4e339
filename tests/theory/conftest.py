from collections.abc import Iterator

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook("volgrowth.theory", "beartype.beartype")


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Tensors here are tiny: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
