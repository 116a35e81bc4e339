"""Audit an image training set for memorization by a diffusion model.

The names in `__all__`, and those of `volgrowth.testing`, are what may be imported; everything else may move. Names are
loaded on first use, so that importing the package, as the command line does, costs neither torch nor ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from volgrowth.version import VERSION as __version__

if TYPE_CHECKING:
    from volgrowth.analysis.policy import CurationPolicy
    from volgrowth.audit.output.result import Audit, open_audit
    from volgrowth.commands.audit import run_audit
    from volgrowth.commands.check import check_audit
    from volgrowth.commands.curate import curate_audit
    from volgrowth.commands.diff import diff_audits
    from volgrowth.commands.export import croissant_record, fiftyone_tags
    from volgrowth.commands.in_memory import audit_images, score_images
    from volgrowth.commands.plan import plan_audit
    from volgrowth.commands.prompts import PromptAudit, audit_prompts
    from volgrowth.commands.report import report_audit
    from volgrowth.commands.tracking import log_audit
    from volgrowth.commands.training import AuditCallback
    from volgrowth.commands.verify import verify_audit
    from volgrowth.config import AuditConfig
    from volgrowth.errors import DataError, EngineError, ModelError, OutputError, UsageError, VolgrowthError
    from volgrowth.models import EDM, NetworkDenoiser, Scheduled, adapt, load_model, velocity
    from volgrowth.numerics import (
        DDPMSchedule,
        Denoiser,
        EmpiricalDenoiser,
        FlowMatchingSchedule,
        GaussianDenoiser,
        LinearDenoiser,
        Schedule,
        TraceGrowth,
        VESchedule,
        VolumeGrowth,
        VPSchedule,
        trace_growth,
        volume_growth,
    )
    from volgrowth.theory import MinNormDenoiser

_HOMES = {
    "analysis.policy": "CurationPolicy",
    "audit.output.result": "Audit open_audit",
    "commands.audit": "run_audit",
    "commands.check": "check_audit",
    "commands.curate": "curate_audit",
    "commands.diff": "diff_audits",
    "commands.export": "croissant_record fiftyone_tags",
    "commands.in_memory": "audit_images score_images",
    "commands.plan": "plan_audit",
    "commands.prompts": "PromptAudit audit_prompts",
    "commands.report": "report_audit",
    "commands.tracking": "log_audit",
    "commands.training": "AuditCallback",
    "commands.verify": "verify_audit",
    "config": "AuditConfig",
    "errors": "DataError EngineError ModelError OutputError UsageError VolgrowthError",
    "models": "EDM NetworkDenoiser Scheduled adapt load_model velocity",
    "numerics": "DDPMSchedule Denoiser EmpiricalDenoiser FlowMatchingSchedule GaussianDenoiser LinearDenoiser Schedule "
    "TraceGrowth VESchedule VPSchedule VolumeGrowth trace_growth volume_growth",
    "theory": "MinNormDenoiser",
}
_HOME = {name: f"volgrowth.{module}" for module, names in _HOMES.items() for name in names.split()}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'volgrowth' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
