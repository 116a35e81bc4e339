"""Classes of diffusers, without the import of all its networks: a third of the CPU time of a small audit.

Two packages of diffusers import every network that they have, and with them peft and most of transformers, when one of
their modules is imported. Here they are entered without that. Who asks such a package for a name, as user code may, has
it imported then. diffusers also imports torch's compiler, half a second, to mark blocks that it must not look into;
`mark_blocks` does that before a network is compiled. A diffusers that was imported before is left as it is.
"""

import importlib
import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any

from volgrowth.models.pipelines.settings import arguments

PLAIN_PIPELINES = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline", "ScoreSdeVePipeline")
"""Pipelines of a network and a scheduler."""
_PLAIN = ("unet", "scheduler")
_PACKAGES = ("diffusers.models.unets", "diffusers.models.transformers")
_COMPILER = "torch._dynamo"
_lock = threading.RLock()
_unmarked: list[Any] = []


class _Entered(ModuleType):
    """A package whose modules can be imported, and which is imported itself when it is asked for a name."""

    def __getattr__(self, name: str) -> Any:
        with _lock:
            if type(self) is _Entered:
                self.__class__ = ModuleType  # type: ignore[assignment]
                assert self.__spec__ is not None
                assert self.__spec__.loader is not None
                self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def class_of_diffusers(name: str) -> Any:
    """Return a class of diffusers by its name; None if this diffusers has none."""
    with _lock:
        if "diffusers" not in sys.modules:
            _import_diffusers()
    import diffusers

    return getattr(diffusers, name, None)


def pipeline_arguments(name: str) -> set[str]:
    """Return the names of the arguments of a pipeline of diffusers, without its import if it is plain."""
    return set(_PLAIN) if name in PLAIN_PIPELINES else arguments(class_of_diffusers(name))


def mark_blocks() -> None:
    """Tell torch's compiler of the blocks that diffusers marked."""
    if _unmarked:
        from torch._dynamo import allow_in_graph

        while _unmarked:
            allow_in_graph(_unmarked.pop())


def _import_diffusers() -> None:
    compiler = None if _COMPILER in sys.modules else ModuleType(_COMPILER)
    if compiler is not None:
        compiler.allow_in_graph = _note  # type: ignore[attr-defined]
        sys.modules[_COMPILER] = compiler
    try:
        for name in ("diffusers.models", "diffusers.utils.torch_utils"):
            importlib.import_module(name)
    finally:
        if compiler is not None and sys.modules.get(_COMPILER) is compiler:
            del sys.modules[_COMPILER]
    for name in _PACKAGES:
        if name in sys.modules or (spec := importlib.util.find_spec(name)) is None:
            continue
        package = importlib.util.module_from_spec(spec)
        package.__class__ = _Entered
        sys.modules[name] = package
        parent, _, last = name.rpartition(".")
        setattr(sys.modules[parent], last, package)


def _note(block: Any) -> Any:
    _unmarked.append(block)
    return block
