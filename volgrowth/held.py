"""Objects of this process that settings and outputs name: a model that was given as an object, a temporary output.

A name stands for its object in this process, as long as somebody else holds the object.
"""

from typing import Any
from weakref import WeakValueDictionary

MEMORY = "memory:"
"""The names of models that were given as objects begin with this."""

_objects: WeakValueDictionary[str, Any] = WeakValueDictionary()


def hold(name: str, held: Any) -> None:
    """Have a name stand for an object, as long as somebody else holds the object."""
    _objects[name] = held


def held_by(name: str) -> Any:
    """Return the object that a name stands for; None if there is none, or no longer."""
    return _objects.get(name)
