"""Functions of the user's own, which are named as `module:function`."""

import importlib
import os
import sys
from types import ModuleType
from typing import Any

from volgrowth.errors import VolgrowthError


def import_function(module: str, function: str, kind: type[VolgrowthError], called: str) -> tuple[Any, ModuleType]:
    """The function, or what else has its name, and its module, which is looked for in the working directory too.

    Errors are of the given `kind` and begin with what the user knows the function as, such as `score 'mine:contrast'`.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
        return getattr(found, function), found
    except Exception as error:  # a module may fail in its own ways, a broken one with SyntaxError
        reason = str(error) or type(error).__name__
        raise kind(
            f"{called} cannot be imported ({reason}): expected a module on the Python path or in {os.getcwd()} "
            f"with that function"
        ) from None
