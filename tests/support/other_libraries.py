"""Libraries of other trainers, for the tests of their adapters: `make test` installs them, and they are skipped else.

Some of them import libraries for data sets and metrics that no adapter touches, and that do not install everywhere:
torchvision must be built for the torch that is installed. Where such a library cannot be imported, the import of the
trainer's library is given an empty one in its place.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import MagicMock

import pytest

_BESIDE = {
    "torchvision": ("", ".transforms", ".transforms.functional", ".utils", ".datasets", ".models", ".io", ".ops"),
    "clip": ("",),
    "cleanfid": ("", ".inception_torchscript"),
    "resize_right": ("",),
    "skimage": ("", ".transform"),
}


def library(name: str) -> Any:
    """Return a library, or skip the tests of the module that asks for it."""
    with _libraries_beside():
        return pytest.importorskip(name, exc_type=ImportError)


@contextmanager
def _libraries_beside() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, parts in _BESIDE.items():
            try:
                importlib.import_module(name)
            except (ImportError, RuntimeError):
                for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == name]:
                    del sys.modules[loaded]
                for part in parts:
                    patch.setitem(sys.modules, f"{name}{part}", MagicMock())
        yield
