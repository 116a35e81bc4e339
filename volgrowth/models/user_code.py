"""Functions that users write themselves and name as `module:function`."""

import importlib
import os
import sys
from types import ModuleType
from typing import Any

from volgrowth.errors import VolgrowthError


def import_function(module: str, function: str, kind: type[VolgrowthError], called: str) -> tuple[Any, ModuleType]:
    """Import an object by the names of its module and its own.

    Args:
        module: on the Python path or in the working directory.
        function: name of a function, or another object, in the module.
        kind: class of the error that is raised.
        called: how the user knows the function, such as `score 'mine:contrast'`; the error begins with it.

    Returns:
        The object and its module.

    Raises:
        VolgrowthError: the module or the name in it cannot be imported.
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
