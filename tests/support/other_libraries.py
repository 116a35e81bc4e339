"""Libraries of other trainers, for the tests of their adapters: `make test` installs them, and they are skipped else.

Some of them import torchvision, for data sets and metrics that no adapter touches. It must be built for the torch that
is installed; where it is not, or is not there, their import is given an empty one.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import MagicMock

import pytest

_PARTS = ("", ".transforms", ".transforms.functional", ".utils", ".datasets", ".models", ".io", ".ops")


def library(name: str) -> Any:
    """Return a library, or skip the tests of the module that asks for it."""
    with _some_torchvision():
        return pytest.importorskip(name, exc_type=ImportError)


@contextmanager
def _some_torchvision() -> Iterator[None]:
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        with pytest.MonkeyPatch.context() as patch:
            for part in _PARTS:
                patch.setitem(sys.modules, f"torchvision{part}", MagicMock())
            yield
    else:
        yield
