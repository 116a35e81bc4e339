"""Closed forms: models for which it is known what they memorize, and what that means for an audit."""

from volgrowth.theory.end_points import (
    EndPoint,
    classify,
    is_stable,
    probability_flow,
    score_flow,
    stable_sums,
    vertex_time,
)
from volgrowth.theory.inertia import inertia_sample
from volgrowth.theory.min_norm import HybridDenoiser, MinNormDenoiser

__all__ = [
    "EndPoint",
    "HybridDenoiser",
    "MinNormDenoiser",
    "classify",
    "inertia_sample",
    "is_stable",
    "probability_flow",
    "score_flow",
    "stable_sums",
    "vertex_time",
]
