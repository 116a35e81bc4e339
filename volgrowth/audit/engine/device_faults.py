"""A GPU that is out of order: how that is told from errors of rows or of the network, and which nodes are avoided."""

from collections import Counter
from typing import Any

from volgrowth.errors import EngineError, VolgrowthError

# what the driver says of a device that failed, was lost, or belongs to another process; errors that a kernel makes,
# such as an illegal address or a failed assertion, are not among them, since rows or the network may be their cause
SAID = (
    "uncorrectable ECC error",
    "uncorrectable NVLink error",
    "hardware stack error",
    "or a hardware error",
    "device(s) is/are busy or unavailable",
    "no CUDA-capable device is detected",
    "GPU is lost",
    "CUDA error: unknown error",
)
# faults of the GPUs of a node after which it gets no workers any more
MOST_FAULTS = 3


class DeviceFailedError(RuntimeError):
    """A worker could not start, since its GPU is out of order.

    Attributes:
        node: the node of Ray that it is on.
        host: the node's name.
        reason: what the driver said.
    """

    def __init__(self, node: str, host: str, reason: str):
        super().__init__(node, host, reason)
        self.node, self.host, self.reason = node, host, reason


def device_failed(error: BaseException) -> bool:
    """Say whether an error means that the GPU failed, and nothing of what it was doing.

    A factory's errors come as a `ModelError` that has them as its cause.
    """
    if isinstance(error, VolgrowthError):
        return error.__cause__ is not None and device_failed(error.__cause__)
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SAID)


class DeviceFaults:
    """Counts the faults of GPUs by node."""

    def __init__(self) -> None:
        self._faults = Counter[str]()

    @property
    def avoided(self) -> list[str]:
        """The nodes that get no workers any more."""
        return [node for node, faults in self._faults.items() if faults >= MOST_FAULTS]

    def note(self, node: str) -> bool:
        """Count a fault, and return whether the node is avoided from now on."""
        self._faults[node] += 1
        return self._faults[node] == MOST_FAULTS

    def check_others(self, nodes: list[dict[str, Any]]) -> None:
        """Check that there is a node that is not avoided.

        Args:
            nodes: what `ray.nodes` returns.

        Raises:
            EngineError: there is none.
        """
        if self.avoided and not {node["NodeID"] for node in nodes if node["Alive"]} - set(self.avoided):
            raise EngineError(
                f"the GPUs of every node failed {MOST_FAULTS} times (--log-json tells how): what is published stays; "
                f"look at them with nvidia-smi, and the same command resumes"
            )
