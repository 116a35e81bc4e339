"""`volgrowth doctor`: see whether an audit can run here, in a table of versions, devices, Ray, stores and room."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from volgrowth.errors import first_line
from volgrowth.plain import plain
from volgrowth.storage.urls import EXTRAS
from volgrowth.version import VERSION

NEEDED = ("torch", "ray", "diffusers", "datasets", "pyarrow", "duckdb", "scipy", "scikit-learn", "pillow", "matplotlib")
"""Packages that the main job needs, by the names under which they are installed."""
OPTIONAL = ("transformers", "peft", "pillow-heif")
_MODULES = {"scikit-learn": "sklearn", "pillow": "PIL", "pillow-heif": "pillow_heif"}
LEAST_ROOM = 100 << 20
"""Bytes of temporary space below which an audit cannot work."""
CREDENTIALS = {
    "s3": (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"), "~/.aws/credentials"),
    "gs": (("GOOGLE_APPLICATION_CREDENTIALS",), "~/.config/gcloud/application_default_credentials.json"),
    "az": (("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_CONNECTION_STRING"), None),
    "hf": (("HF_TOKEN",), "~/.cache/huggingface/token"),
}
"""Environment variables and the file in which the client of each store looks for credentials."""


class Finding(NamedTuple):
    """A line of the table: what was looked at, what it is, and what is broken about it, if anything."""

    name: str
    state: str
    broken: str = ""


def examine_machine() -> list[Finding]:
    """Look at everything; a part that cannot be looked at is a finding too."""
    found: list[Finding] = [Finding("volgrowth", VERSION), _python()]
    parts: dict[str, Callable[[], Iterator[Finding]]] = {
        "packages": _packages,
        "devices": _devices,
        "Ray": _ray,
        "stores": _stores,
        "temporary space": _room,
    }
    for name, look in parts.items():
        try:
            found += look()
        except Exception as error:  # drivers and packages that are half installed raise errors of every kind
            found.append(Finding(name, "cannot be looked at", f"{type(error).__name__}: {first_line(error)}"))
    return found


def doctor_lines(found: list[Finding]) -> list[str]:
    """Return the table, and a last line with the verdict."""
    wide = max(len(each.name) for each in found)
    lines = [f"{each.name:<{wide}}  {plain(each.state)}" for each in found]
    broken = [f"broken: {each.name}: {plain(each.broken)}" for each in found if each.broken]
    return [*lines, "", *(broken or ["an audit can run here"])]


def _python() -> Finding:
    said = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    return Finding("Python", said, "" if sys.version_info >= (3, 11) else "expected 3.11 or newer")


def _packages() -> Iterator[Finding]:
    for name in NEEDED:
        problem = _importing(name)
        yield Finding(name, _version(name) or "not installed", problem and f"{problem}: pip install --upgrade {name}")
    for name in OPTIONAL:
        yield Finding(name, _version(name) or "not installed (optional)")


def _importing(name: str) -> str:
    """Return why a package cannot be imported; the empty string if it can."""
    try:
        import_module(_MODULES.get(name, name))
    except Exception as error:  # a library that it loads may be missing or of another version
        return f"cannot be imported ({first_line(error)})"
    return ""


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("CPU", f"{cores} cores for this process, {torch.backends.cpu.get_cpu_capability()}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            yield Finding(f"GPU {index}", f"{about.name}, {about.total_memory / 2**30:.0f} GiB")
    else:
        said = "none that torch sees"
        if torch.version.cuda and shutil.which("nvidia-smi"):
            said += f", though nvidia-smi is there: the driver may be older than CUDA {torch.version.cuda} needs"
        yield Finding("GPU", said + "; audits run on CPUs")
    if torch.backends.mps.is_available():
        said = "torch sees it; --engine local --gpus-per-worker 1 computes on it, which has not been tried on a Mac"
        yield Finding("Apple GPU (MPS)", said)


def _ray() -> Iterator[Finding]:
    address = os.environ.get("RAY_ADDRESS")
    if _importing("ray"):
        yield Finding("Ray", "missing; --engine local works without it")
    elif address:
        yield Finding("Ray", "joins the cluster that RAY_ADDRESS names")
    else:
        yield Finding("Ray", "starts a local one for each audit, or joins --ray-address")
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        yield Finding("shared memory", f"{_size(free)} free in {shared}, which Ray uses between processes")


def _stores() -> Iterator[Finding]:
    """Say which stores can be reached and whether there are credentials; their values are not looked at."""
    for scheme, (names, file) in CREDENTIALS.items():
        extra = EXTRAS.get(scheme)
        package = "huggingface-hub" if scheme == "hf" else {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}[scheme]
        there = _version(package)
        client = f"{package} {there}" if there else f"no {package} (pip install 'volgrowth[{extra or scheme}]')"
        known = [name for name in names if os.environ.get(name)]
        if file and Path(file).expanduser().is_file():
            known.append(file)
        said = f"credentials in {', '.join(known)}" if known else "no credentials found"
        yield Finding(f"{scheme}://", f"{client}; {said}")


def _room() -> Iterator[Finding]:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    least = f"expected {_size(LEAST_ROOM)} or more: set TMPDIR to a folder on a larger disk"
    yield Finding("temporary space", f"{_size(free)} free in {folder}", "" if free >= LEAST_ROOM else least)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 1 << 30 else f"{count / 2**20:.0f} MiB"
