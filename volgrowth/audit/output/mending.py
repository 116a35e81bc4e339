"""Files of an output that were damaged are made again where they can be, and that is said in a line each."""

from types import NoneType
from typing import Any

from volgrowth.audit.output.manifest import Manifest, Shard
from volgrowth.errors import DamagedError, OutputError
from volgrowth.plain import plain, print_plain
from volgrowth.storage.store import Store

Shape = dict[str, Any]
"""The entries that a JSON object must have: a type, a tuple of types, or the shape of an object in it."""
NUMBER = (int, float)
SHAPES: dict[str, Shape] = {
    "noise-floor.json": {
        "batch": (*NUMBER, NoneType),
        "dtype": (*NUMBER, NoneType),
        "derivative": (dict, NoneType),
        "problem": (str, NoneType),
    },
    "model-check.json": {"verdict": str, "images": int, "levels": list, "cause": str, "fix": str},
    "batch-size.json": {"batch_size": int},
    "runs": {
        **dict.fromkeys(("images", "retries", "lost_workers", "workers"), int),
        **dict.fromkeys(("seconds", "decode_wait", "device_wait"), NUMBER),
        **dict.fromkeys(("wall_seconds", "worker_seconds", "working_seconds"), NUMBER),
        "devices": list,
    },
}
"""What JSON files beside the tables hold, by their name or folder."""


def kept_json(store: Store, name: str, shape: Shape, instead: str) -> dict[str, Any] | None:
    """Return the JSON object in a file that an audit can do without, or None if the file is missing or damaged.

    Args:
        store: the output.
        name: the file.
        shape: what the object must hold.
        instead: what becomes of a damaged file, for the line on stderr that says so.
    """
    if not store.exists(name):
        if name in store.names(name.rpartition("/")[0]):
            tell_user(f"{store.path(name)} is no file: {instead}")
        return None
    try:
        content = store.read_json(name)
    except DamagedError as error:
        tell_user(f"{error.path} is damaged ({error.why}): {instead}")
        return None
    if wrong := misshapen(content, shape):
        tell_user(f"{store.path(name)} is not as volgrowth writes it ({wrong}): {instead}")
        return None
    return content


def misshapen(content: dict[str, Any], shape: Shape) -> str | None:
    """Return what is wrong with a JSON object, None if it has all entries of a shape."""
    for name, kind in shape.items():
        if name not in content:
            return f"it lacks {name}"
        value = content[name]
        if isinstance(kind, dict):
            if not isinstance(value, dict):
                return f"{name} is {type(value).__name__}, expected an object"
            if wrong := misshapen(value, kind):
                return f"in {name}, {wrong}"
        elif not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            return f"{name} is {type(value).__name__}"
    return None


def say_scored_again(store: Store, todo: list[Shard]) -> None:
    """Say which fragments are there and damaged, or of another audit: their rows are scored again."""
    there = {f"{folder}/{name}" for folder in {shard.folder for shard in todo} for name in store.names(folder)}
    for shard in todo:
        if shard.name in there:
            tell_user(
                f"{store.path(shard.name)} is damaged or of another audit: its {shard.rows} rows are scored again"
            )


def set_aside(store: Store, manifest: Manifest, error: DamagedError) -> None:
    """Delete a damaged file that the audit makes again, after saying so.

    Raises:
        DamagedError: the error itself, if the audit cannot make the file again.
    """
    if error.name in {shard.name for shard in manifest.shards}:
        tell_user(f"{error.path} is damaged ({error.why}): its rows are scored again")
    elif error.name.startswith("cascade-"):
        tell_user(f"{error.path} is damaged ({error.why}): the rows are chosen again")
    else:
        raise error
    store.delete(error.name)


def tell_user(line: str) -> None:
    """Print one line on stderr."""
    print_plain(plain(line), error=True)


def require(store: Store, names: list[str], fix: str) -> None:
    """Check that files are there.

    Raises:
        OutputError: it names those that are missing.
    """
    folders = {name.rpartition("/")[0] for name in names}
    there = {f"{folder}/{name}".lstrip("/") for folder in folders for name in store.names(folder)}
    if missing := [name for name in names if name not in there]:
        more = f" and {len(missing) - 1} more files are" if len(missing) > 1 else " is"
        raise OutputError(f"{store.path(missing[0])}{more} missing: {fix}")
