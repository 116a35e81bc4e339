"""Functions that users write themselves and name as `module:function`, and where in their files errors come from."""

import importlib
import os
import site
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from volgrowth.errors import VolgrowthError, first_line

_OURS = Path(__file__).parents[1]
_LIBRARIES = tuple(
    {os.path.realpath(path) for path in (*site.getsitepackages(), *map(sysconfig.get_path, ("purelib", "stdlib")))}
)


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
        VolgrowthError: the module or the name in it cannot be imported; the sentence names file and line if the
            module itself failed.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
        return getattr(found, function), found
    except (Exception, SystemExit) as error:  # a module may fail in its own ways, a script by ending the program
        reason = _reason(error)
        raise kind(
            f"{called} cannot be imported ({reason}{at_line(error)}): expected a module on the Python path or in "
            f"{os.getcwd()} with that function"
        ) from None


def at_line(error: BaseException) -> str:
    """Return ` at FILE, line N` for the line of a user's file that an error comes from; an empty string if none did.

    Frames of volgrowth and of installed libraries are passed over: the line is the innermost one that is neither.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {error.filename}, line {error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _is_users(frame.filename):
            return f" at {frame.filename}, line {frame.lineno}"
    return ""


def note_line(error: BaseException) -> None:
    """Note the line of the user's file on an error, since tracebacks do not come along from another process."""
    if line := at_line(error):
        error.add_note(line)


def noted_line(error: BaseException) -> str:
    """Return what `note_line` noted on an error, here or in another process; an empty string if nothing."""
    return "".join(note for note in getattr(error, "__notes__", ()) if note.startswith(" at "))


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "it ends the program when it is imported: put what it does under `if __name__ == '__main__':`"
    if isinstance(error, SyntaxError):
        return error.msg
    return first_line(error)


def _is_users(filename: str) -> bool:
    """Return True for a file of the user's own: neither volgrowth's, nor Python's, nor an installed library's."""
    path = os.path.realpath(filename)
    if filename.startswith("<") or Path(path).is_relative_to(_OURS):
        return False
    return not any(Path(path).is_relative_to(folder) for folder in _LIBRARIES)
