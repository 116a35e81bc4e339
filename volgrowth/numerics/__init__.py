"""The measurement, in pure torch: schedules, denoisers, solvers, tangents, volume growth and traces."""

from volgrowth.numerics.analytic import EmpiricalDenoiser, GaussianDenoiser, LinearDenoiser
from volgrowth.numerics.denoisers import Denoiser
from volgrowth.numerics.growth import VolumeGrowth, volume_growth
from volgrowth.numerics.schedules import (
    DDPMSchedule,
    FlowMatchingSchedule,
    Schedule,
    VESchedule,
    VPSchedule,
)
from volgrowth.numerics.traces import TraceGrowth, trace_growth

__all__ = [
    "DDPMSchedule",
    "Denoiser",
    "EmpiricalDenoiser",
    "FlowMatchingSchedule",
    "GaussianDenoiser",
    "LinearDenoiser",
    "Schedule",
    "TraceGrowth",
    "VESchedule",
    "VPSchedule",
    "VolumeGrowth",
    "trace_growth",
    "volume_growth",
]
