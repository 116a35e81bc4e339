r"""Networks of flow matching, which predict a velocity along straight paths between noise and data.

A velocity is the derivative of the path by the network's own time, so that its sign follows from the direction of time:

    noise_to_data    x_t = t x_0 + (1 - t) e    t = 0 is noise, t = 1 is data    F = dx/dt = x_0 - e    (torchcfm)
    data_to_noise    x_t = (1 - t) x_0 + t e    t = 0 is data, t = 1 is noise    F = dx/dt = e - x_0    (diffusers)

with x_0 an image and e ~ N(0, I), drawn independently of each other (arXiv 2210.02747; 2302.00482).
"""

import inspect
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from volgrowth.errors import ModelError
from volgrowth.models.network import NetworkDenoiser
from volgrowth.models.objects.preparing import Module, network_denoiser
from volgrowth.models.parameterizations import Scheduled
from volgrowth.numerics import FlowMatchingSchedule
from volgrowth.plain import kind_of

TimeDirection = Literal["noise_to_data", "data_to_noise"]
Arguments = Literal["t, x", "x, t"]
FIRST, LAST = 0.001, 0.999
"""First and last time that are used, from the data on: at the data there is no noise, and in pure noise no image."""
_TIMES = ("t", "time", "times", "timestep", "timesteps", "temb", "noise_labels")


class _AlongTime(Module):
    """A velocity network as a function (x, t) of the velocity from data to noise."""

    def __init__(self, inner: torch.nn.Module, time_first: bool, sign: int):
        super().__init__(inner)
        self.time_first, self.sign = time_first, sign

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        given = (times, x) if self.time_first else (x, times)
        output = self.inner(*given)
        answer: Tensor = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
        return self.sign * answer


def velocity(
    network: torch.nn.Module,
    *,
    time: TimeDirection,
    image_shape: tuple[int, int, int],
    arguments: Arguments | None = None,
    time_scale: float = 1.0,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> NetworkDenoiser:
    """Return the denoiser of a flow-matching network, which was trained on straight paths between noise and data.

    The network's output is the derivative of the path by its time, so that `time` gives its sign too: x_0 - e for
    `noise_to_data`, as torchcfm trains it, and e - x_0 for `data_to_noise`, as diffusers does. Images and noises must
    have been drawn independently; a network of pairs that an optimal transport chose answers another question.

    Args:
        network: the network; it is put into `eval()`.
        time: which way time runs: `noise_to_data` if t = 0 is noise and t = 1 is data, else `data_to_noise`.
        image_shape: (channels, height, width) of the images.
        arguments: order of the network's arguments, "t, x" as torchcfm calls it, or "x, t"; by default the names of the
            arguments of its `forward` tell.
        time_scale: what the network is given for t = 1, such as 1000.
        value_range: range of the pixels that it was trained on: (-1, 1) or (0, 1).

    Raises:
        ModelError: `time` or `arguments` is no such word, or the names of the arguments do not tell their order.
    """
    if time not in get_args(TimeDirection):
        raise ModelError(f"time {time!r}: expected 'noise_to_data' (t = 0 is noise) or 'data_to_noise' (t = 0 is data)")
    if not isinstance(network, torch.nn.Module):
        raise ModelError(f"{kind_of(network)} was given as a network: expected a torch.nn.Module")
    order = arguments or _order(network)
    if order not in get_args(Arguments):
        raise ModelError(f"arguments {order!r}: expected 't, x' or 'x, t'")
    rising = time == "data_to_noise"
    schedule = FlowMatchingSchedule()

    def label(share: Tensor) -> Tensor:
        return time_scale * (share if rising else 1 - share)

    def sampling_levels(steps: int) -> Tensor:
        return schedule.noise_level(torch.linspace(FIRST, LAST, steps + 1, dtype=torch.float64))

    return network_denoiser(
        _AlongTime(network, order == "t, x", 1 if rising else -1),
        Scheduled(schedule, "flow_prediction", (FIRST / (1 - FIRST), LAST / (1 - LAST)), label),
        image_shape,
        value_range,
        type(network).__name__,
        sampling_levels=sampling_levels,
    )


def _order(network: Any) -> str:
    """Tell the order of a network's arguments by their names."""
    names = [name for name in inspect.signature(network.forward).parameters if name != "self"][:2]
    times = [name.lower() in _TIMES for name in names]
    if len(names) < 2 or sum(times) != 1:
        raise ModelError(
            f"the arguments of {type(network).__name__}.forward, ({', '.join(names)}), do not tell which is the time: "
            f"give arguments='t, x' or arguments='x, t'"
        )
    return "t, x" if times[0] else "x, t"
