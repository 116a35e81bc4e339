"""The tensors behind a denoiser: where they are found, and what changes their digest."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.checkpoints import unet
from volgrowth.errors import ModelError
from volgrowth.models.weight_digest import WeightDigest, digest_weights

GLOBAL = nn.Linear(2, 2)


def network(value: float = 1.0) -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    for tensor in module.state_dict().values():
        tensor.fill_(value if tensor.is_floating_point() else 0)
    return module


def digest(denoiser: object) -> WeightDigest:
    return digest_weights(denoiser, "factory:mine:load")


class Slotted:
    __slots__ = ("network",)

    def __init__(self, network: nn.Module):
        self.network = network


def of_class(network: nn.Module) -> object:
    return type("Mine", (), {"network": network, "__module__": "mine"})()


def closure(network: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: network(x)


class Holder(nn.Module):
    """A module that keeps another one where torch does not look."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.hidden = [network]


PLACES: dict[str, Callable[[nn.Module], object]] = {
    "attribute": lambda m: SimpleNamespace(network=m),
    "dict": lambda m: SimpleNamespace(parts={"of": {"denoiser": m}}),
    "list and tuple": lambda m: SimpleNamespace(parts=[("a", m)]),
    "closure": lambda m: SimpleNamespace(network=closure(m)),
    "closure in a closure": lambda m: SimpleNamespace(network=closure(closure(m))),  # type: ignore[arg-type]
    "partial": lambda m: SimpleNamespace(network=functools.partial(torch.add, other=m)),
    "bound method": lambda m: SimpleNamespace(network=m.forward),
    "default argument": lambda m: SimpleNamespace(network=eval("lambda x, m=m: m(x)", {"m": m})),
    "slots": Slotted,
    "class attribute": of_class,
    "hidden in a module": Holder,
    "data parallel": lambda m: SimpleNamespace(network=nn.DataParallel(m)),
    "script": lambda m: SimpleNamespace(network=torch.jit.script(m)),
    "a tensor alone": lambda m: SimpleNamespace(weight=m[0].weight.detach()),  # type: ignore[index]
    "numpy": lambda m: SimpleNamespace(weight=m[0].weight.detach().numpy()),  # type: ignore[index]
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("place", PLACES)
def test_a_changed_weight_changes_the_digest_wherever_the_network_is(place: str) -> None:
    found, again, other = (digest(PLACES[place](network(value))) for value in (1.0, 1.0, 1.0 + 1e-6))
    assert found == again
    assert found.digest != other.digest
    assert found.numbers == (6 if place in ("a tensor alone", "numpy") else 6 + 3 + 3 + 3 + 3 + 3 + 1)


def test_a_global_that_the_denoiser_uses_counts() -> None:
    class Mine:
        def __call__(self, y: Tensor) -> Tensor:
            return GLOBAL(y)

    before = digest(Mine())
    assert before.numbers == 6
    with torch.no_grad():
        GLOBAL.bias.add_(1)
    assert digest(Mine()).digest != before.digest


def test_buffers_dtypes_shapes_and_names_count() -> None:
    def of(**tensors: Tensor) -> bytes:
        return digest(SimpleNamespace(**tensors)).digest

    ones = torch.ones(2, 3)
    others = [of(a=ones.T), of(a=ones.double()), of(a=ones.bfloat16()), of(b=ones), of(a=ones, b=torch.ones(()))]
    assert len({of(a=ones), *others}) == 6
    assert of(a=torch.arange(6.0).reshape(2, 3).T.contiguous()) == of(a=torch.arange(6.0).reshape(2, 3).T)
    module = network()
    before = digest(module).digest
    module[1].running_mean += 1  # type: ignore[index]
    assert digest(module).digest != before


def test_order_and_wrappers_do_not_count() -> None:
    a, b = network(1.0), network(2.0)
    assert digest(SimpleNamespace(a=a, b=b)).digest == digest(SimpleNamespace(b=b, a=a)).digest
    plain, compiled = digest(SimpleNamespace(network=a)), digest(SimpleNamespace(network=torch.compile(a)))
    assert compiled.digest == plain.digest


def test_shared_tensors_count_once() -> None:
    module = network()
    assert digest(SimpleNamespace(a=module[0], b=module[0])).numbers == 9  # type: ignore[index]
    tied = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    tied[1].weight = tied[0].weight
    assert digest(tied).numbers == 4


def quantised(value: float) -> Any:
    return torch.quantize_per_tensor(torch.tensor([0.0, value, 1.0]), 0.1, 3, torch.qint8)


KINDS: dict[str, Callable[[float], Any]] = {
    "quantised": quantised,
    "sparse": lambda v: torch.sparse_coo_tensor(torch.tensor([[0, 2]]), torch.tensor([v, 1.0]), (3,)),
    "complex": lambda v: torch.tensor([1 + v * 1j]),
    "conjugated": lambda v: torch.tensor([1 + v * 1j]).conj(),
    "bool": lambda v: torch.tensor([v > 0.3]),
    "big-endian numpy": lambda v: np.array([v], ">f4"),
    "empty": lambda v: torch.zeros(0, int(v * 10)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_tensors(kind: str) -> None:
    found, again, other = (digest(SimpleNamespace(t=KINDS[kind](value))) for value in (0.5, 0.5, 0.2))
    assert found == again
    assert found.note == ""
    assert found.digest != other.digest


def test_tensors_without_values_are_refused() -> None:
    with torch.device("meta"):
        empty = nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"mine:load returned .* tensor network\.weight has no values yet \(it is on"):
        digest(SimpleNamespace(network=empty))
    with pytest.raises(ModelError, match=r"has no values yet \(it is lazy\): load the weights in the factory"):
        digest(SimpleNamespace(network=nn.LazyLinear(2)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_and_masks_are_not(value: float) -> None:
    with pytest.raises(ModelError, match=r"tensor network\.0\.weight holds NaN or infinity: give a checkpoint from"):
        digest(SimpleNamespace(network=network(value)))
    module = network()
    module.register_buffer("mask", torch.full((2,), -value))
    assert digest(module).digest


def test_a_network_of_diffusers_is_found_whole() -> None:
    found = digest(SimpleNamespace(network=closure(network := unet())))
    assert found.numbers == network.num_parameters()


def test_what_holds_itself_ends() -> None:
    denoiser = SimpleNamespace(network=network())
    denoiser.me = [denoiser, {"me": denoiser}]
    assert digest(denoiser).numbers == 22
