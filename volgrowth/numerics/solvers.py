r"""One step of the probability flow dy/dnoise_level = e(y, noise_level), for points and tangents alike.

A solver writes `step`: from the stack at node t to the stack at node s, given `evaluate`, the expected noise of a
stack. Steps are linear in stacks, so tangents follow the derivative of the discrete map itself, not of the ODE.

    euler      x_s = x_t + (t_s - t_t) dx/dt in native time, as published (arXiv 2503.19429)
    ddim       y_s = y_t + (level_s - level_t) e_t                                        first order
    heun       the trapezoidal rule with a ddim predictor (arXiv 2206.00364, alg. 1)      second order
    multistep  y_s = rho y_t + (1 - rho) D with rho = level_s / level_t and D the denoised image extrapolated
               to mid-step from this node and the one before in log noise level (2M of arXiv 2211.01095)  second order

In the last, the first step has no past and is a ddim step, whose local error is of second order as well.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log
from typing import Any

import torch
from torch import Tensor

from volgrowth.numerics.schedules import Schedule
from volgrowth.numerics.tangents import Stack, change_basis


@dataclass(frozen=True)
class Node:
    """A point in time: native time, the schedule there, and d log alpha/dt and d noise_level/dt."""

    time: float
    alpha: float
    noise_level: float
    log_alpha_rate: float
    noise_level_rate: float


def nodes(schedule: Schedule, times: Tensor) -> list[Node]:
    """The schedule at increasing `times` (nodes,), in float64 on the host so that no step waits for a device."""
    times = torch.as_tensor(times, dtype=torch.float64, device="cpu")

    def scalars(t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = schedule(t)
        return alpha.log(), sigma / alpha

    if times.ndim != 1 or not len(times):
        raise ValueError(f"the grid has shape {tuple(times.shape)}: expected (nodes,), one or more")
    values, rates = torch.func.jvp(scalars, (times,), (torch.ones_like(times),))[:2]
    columns = torch.stack([times, values[0].exp(), values[1], *rates], -1)
    levels = columns[:, 2]
    before = torch.cat([torch.zeros(1, dtype=torch.float64), levels[:-1]])
    bad = ~(columns.isfinite().all(1) & (levels > before))
    if bad.any():
        i = int(bad.nonzero()[0])
        raise ValueError(
            f"entry {i} of the grid, {times[i].item()}, has noise level {levels[i].item()} "
            f"after {before[i].item()}: expected finite noise levels that rise from above 0"
        )
    return [Node(*row) for row in columns.tolist()]


Evaluate = Callable[[Stack, Node], Stack]


@dataclass(frozen=True)
class Memory:
    """What a multistep solver keeps of the node before: its denoised stack and its noise level."""

    denoised: Stack
    noise_level: float

    def reframed(self, r: Tensor) -> "Memory":
        """The same after QR replaced the tangents U by U r^-1."""
        tangents = change_basis(self.denoised[:, 1:], r)
        return replace(self, denoised=torch.cat([self.denoised[:, :1], tangents], 1))


class Solver(ABC):
    """A rule for one step. `evaluations` counts the evaluations of a stack in it."""

    evaluations = 1

    @abstractmethod
    def step(
        self, evaluate: Evaluate, stack: Stack, t: Node, s: Node, memory: Memory | None
    ) -> tuple[Stack, Memory | None]:
        """The stack at node s from the one at node t, in y-coordinates, and what the next step should know."""


class Euler(Solver):
    """Euler in native time. In y = x / alpha: alpha_s y_s = alpha_t (1 + dt a) y_t + dt alpha_t b e_t."""

    def step(self, evaluate: Evaluate, stack: Stack, t: Node, s: Node, memory: Memory | None) -> Any:
        dt, scale = s.time - t.time, t.alpha / s.alpha
        noise = evaluate(stack, t)
        return scale * (1 + dt * t.log_alpha_rate) * stack + scale * dt * t.noise_level_rate * noise, None


class DDIM(Solver):
    """Euler in the noise level."""

    def step(self, evaluate: Evaluate, stack: Stack, t: Node, s: Node, memory: Memory | None) -> Any:
        return stack + (s.noise_level - t.noise_level) * evaluate(stack, t), None


class Heun(Solver):
    """Two evaluations a step."""

    evaluations = 2

    def step(self, evaluate: Evaluate, stack: Stack, t: Node, s: Node, memory: Memory | None) -> Any:
        h = s.noise_level - t.noise_level
        first = evaluate(stack, t)
        second = evaluate(stack + h * first, s)
        return stack + h / 2 * (first + second), None


class Multistep(Solver):
    """Second order at one evaluation a step: the most accurate per evaluation on a log noise grid."""

    def step(self, evaluate: Evaluate, stack: Stack, t: Node, s: Node, memory: Memory | None) -> Any:
        denoised = stack - t.noise_level * evaluate(stack, t)
        middle = denoised
        if memory is not None:
            ratio = log(s.noise_level / t.noise_level) / log(t.noise_level / memory.noise_level)
            middle = denoised + ratio / 2 * (denoised - memory.denoised)
        rho = s.noise_level / t.noise_level
        return rho * stack + (1 - rho) * middle, Memory(denoised, t.noise_level)


SOLVERS: dict[str, type[Solver]] = {"euler": Euler, "ddim": DDIM, "heun": Heun, "multistep": Multistep}
