r"""One step of the probability flow dy/dnoise_level = e(y, noise_level), for points and tangents alike.

A *stack* is a point with tangents at it (`numerics.tangents`), a *node* is a point in time with the schedule's numbers
there. A solver writes `step`, which takes the stack at node t to the stack at node s, given a function that evaluates
the expected noise of a stack. Steps are linear combinations of stacks, so tangents follow the derivative of the
discrete step itself, not that of the ODE.

    euler      x_s = x_t + (t_s - t_t) dx/dt in native time, as published (arXiv 2503.19429)
    ddim       y_s = y_t + (level_s - level_t) e_t                                        first order
    heun       the trapezoidal rule with a ddim predictor (arXiv 2206.00364, alg. 1)      second order
    multistep  y_s = rho y_t + (1 - rho) D with rho = level_s / level_t and D the denoised image extrapolated
               to mid-step from this node and the one before in log noise level (2M of arXiv 2211.01095)  second order

The first multistep step has no node before it and is a ddim step, whose local error is of second order as well.
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
    """A point in time, as numbers of Python.

    Attributes:
        time: native time t.
        alpha, noise_level: the schedule there.
        log_alpha_rate, noise_level_rate: d log alpha/dt and d noise_level/dt.
    """

    time: float
    alpha: float
    noise_level: float
    log_alpha_rate: float
    noise_level_rate: float


def nodes(schedule: Schedule, times: Tensor) -> list[Node]:
    """Evaluate a schedule and its derivatives at the nodes of a grid, so that no later step waits for a device.

    Args:
        schedule: the noise schedule.
        times: (nodes,) native times with rising noise levels.

    Raises:
        ValueError: there are no times, or noise levels are not finite or do not rise from above 0.
    """
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
    """Results at the node before that a multistep solver uses: its denoised stack and its noise level."""

    denoised: Stack
    noise_level: float

    def reframed(self, r: Tensor) -> "Memory":
        """Return the memory after QR replaced the tangents U by U r^-1, with r (B, k, k)."""
        tangents = change_basis(self.denoised[:, 1:], r)
        return replace(self, denoised=torch.cat([self.denoised[:, :1], tangents], 1))


class Solver(ABC):
    """A rule for one step; `evaluations` is how often a step evaluates a stack."""

    evaluations = 1

    @abstractmethod
    def step(
        self, evaluate: Evaluate, stack: Stack, t: Node, s: Node, memory: Memory | None
    ) -> tuple[Stack, Memory | None]:
        """Take one step.

        Args:
            evaluate: function from a stack and a node to the expected noise and its derivatives along the tangents.
            stack: points and tangents at node t, in y-coordinates.
            t: the node that the step starts from.
            s: the node that it goes to.
            memory: the memory that the step before returned.

        Returns:
            The stack at node s, and the memory for the next step; None for solvers that need none.
        """


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
    """The trapezoidal rule in the noise level, at two evaluations a step."""

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
