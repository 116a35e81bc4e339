"""Audit an image training set for memorization by a diffusion model.

Names are loaded on first use, so that importing the package, as the command line does, costs neither torch nor ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from volgrowth.version import VERSION as __version__

if TYPE_CHECKING:
    from volgrowth.audit.output.result import open_audit
    from volgrowth.commands.audit import run_audit
    from volgrowth.commands.verify import verify_audit
    from volgrowth.config import AuditConfig
    from volgrowth.models import load_model
    from volgrowth.numerics import (
        DDPMSchedule,
        Denoiser,
        EmpiricalDenoiser,
        FlowMatchingSchedule,
        GaussianDenoiser,
        LinearDenoiser,
        Schedule,
        VESchedule,
        VPSchedule,
        trace_growth,
        volume_growth,
    )
    from volgrowth.theory import MinNormDenoiser

_HOMES = {
    "volgrowth.audit.output.result": ("open_audit",),
    "volgrowth.config": ("AuditConfig",),
    "volgrowth.models": ("load_model",),
    "volgrowth.commands.audit": ("run_audit",),
    "volgrowth.theory": ("MinNormDenoiser",),
    "volgrowth.commands.verify": ("verify_audit",),
    "volgrowth.numerics": (
        "DDPMSchedule",
        "Denoiser",
        "EmpiricalDenoiser",
        "FlowMatchingSchedule",
        "GaussianDenoiser",
        "LinearDenoiser",
        "Schedule",
        "VESchedule",
        "VPSchedule",
        "trace_growth",
        "volume_growth",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'volgrowth' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
