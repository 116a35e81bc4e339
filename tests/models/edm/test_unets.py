"""The U-Nets of EDM: against NVlabs' own, and as functions that are differentiated."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from volgrowth.models.edm.blocks import Conv, attention
from volgrowth.models.edm.unets import ARCHITECTURES, UNet

DDPMPP = {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1, 2, 2], "num_blocks": 1}
DDPMPP |= {"attn_resolutions": [4]}
NCSNPP = DDPMPP | {"embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual"}
NCSNPP |= {"resample_filter": [1, 3, 3, 1]}
ADM = {"model_type": "DhariwalUNet", "model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1}
ADM |= {"attn_resolutions": [8, 4]}
# name: arguments, channels of the output, classes
NETWORKS: dict[str, tuple[dict[str, Any], int, int]] = {
    "ddpmpp": (DDPMPP | {"augment_dim": 9}, 3, 0),
    "ddpmpp-classes": (DDPMPP, 3, 10),
    "ncsnpp": (NCSNPP, 3, 0),
    "ncsnpp-classes-skip": (NCSNPP | {"decoder_type": "skip"}, 3, 4),
    "adm-classes": (ADM, 6, 5),
    "adm-augmented": (ADM | {"augment_dim": 9}, 3, 0),
}


def waves(*shape: int, phase: float = 0.0) -> Tensor:
    """Return numbers of unit variance that are the same on every machine and with every version of torch."""
    steps = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (2**0.5 * torch.sin(1.7 * steps + 0.1 * steps.sqrt() + phase)).reshape(shape)


def filled(network: UNet) -> UNet:
    """Return weights of unit gain from `waves`, which depend only on names and shapes."""
    tensors = {}
    for phase, (name, empty) in enumerate(sorted(network.state_dict().items())):
        values = waves(*empty.shape, phase=float(phase))
        if "norm" in name:
            values = values / 10 + name.endswith("weight")
        elif empty.ndim > 1:
            values = values / empty[0].numel() ** 0.5
        tensors[name] = values
    for module_name, module in network.named_modules():
        if isinstance(module, Conv) and module.resample:
            line = torch.tensor([1, 3, 3, 1] if module.border else [1, 1], dtype=torch.float64)
            tensors[f"{module_name}.resample_filter"] = line.outer(line)[None, None] / line.sum() ** 2
    network.load_state_dict(tensors, assign=True)
    return network.requires_grad_(False)


def network(name: str) -> UNet:
    values, outputs, classes = NETWORKS[name]
    arguments = {key: value for key, value in values.items() if key != "model_type"}
    with torch.device("meta"):
        empty = ARCHITECTURES[values["model_type"]](**arguments).network(8, 3, outputs, classes)
    return filled(empty)


def arguments(name: str, batch: int = 2) -> tuple[Tensor, Tensor, Tensor | None]:
    classes = NETWORKS[name][2]
    chosen = torch.arange(batch) % (classes + 1)
    labels = torch.eye(classes + 1, dtype=torch.float64)[chosen, :classes] if classes else None
    return waves(batch, 3, 8, 8), 3 * waves(batch, phase=1.0), labels


# mean, mean square, and entries 0, 100, 300 of the output for `arguments`, in float64. Made by the networks of
# https://github.com/NVlabs/edm (training/networks.py, commit 008a4e5), built with `NETWORKS`,
# filled by `filled`, and with the softmax of attention in float64, which that code takes in float32.
GOLDENS = {
    "ddpmpp": [0.359703391416, 0.568864283313, 0.0445521111888, 1.16762835352, 1.21937646465],
    "ddpmpp-classes": [0.355044602371, 0.599990043274, 0.00591625954373, 1.19088906361, 1.22543946698],
    "ncsnpp": [0.364604479615, 0.527152746626, 0.0377400155018, 1.13028414857, 1.1174197639],
    "ncsnpp-classes-skip": [-0.287219222462, 0.409785119545, 0.104415710945, -0.597847848559, -0.772995155005],
    "adm-classes": [0.113082042236, 0.974461789413, -0.733093035224, 1.4246233413, 0.498777112752],
    "adm-augmented": [0.225618435561, 0.748541360888, -0.731076101385, 1.42838501308, 1.47175048144],
}


@pytest.mark.parametrize("name", GOLDENS)
def test_outputs_are_those_of_nvlabs_networks(name: str) -> None:
    output = network(name)(*arguments(name))
    flat = output.flatten()
    found = torch.stack([flat.mean(), flat.square().mean(), *flat[[0, 100, 300]]])
    assert_close(found, torch.tensor(GOLDENS[name], dtype=torch.float64), rtol=1e-9, atol=1e-10)


CIFAR10_NCSNPP = {"channel_mult": [2, 2, 2], "augment_dim": 9, "embedding_type": "fourier", "channel_mult_noise": 2}
CIFAR10_NCSNPP |= {"encoder_type": "residual", "resample_filter": [1, 3, 3, 1]}
# resolution, classes, network, arguments as in NVlabs' train.py, parameters as NVlabs' own networks count them
PUBLISHED: dict[str, tuple[int, int, str, dict[str, Any], int]] = {
    "cifar10-ddpmpp": (32, 0, "SongUNet", {"channel_mult": [2, 2, 2], "augment_dim": 9}, 55_733_891),
    "cifar10-ncsnpp-classes": (32, 10, "SongUNet", CIFAR10_NCSNPP, 56_400_643),
    "ffhq-ddpmpp": (64, 0, "SongUNet", {"channel_mult": [1, 2, 2, 2], "augment_dim": 9}, 61_805_571),
    "imagenet-adm": (64, 1000, "DhariwalUNet", {}, 295_899_267),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_their_published_size(name: str) -> None:
    resolution, classes, kind, values, parameters = PUBLISHED[name]
    with torch.device("meta"):
        built = ARCHITECTURES[kind](**values).network(resolution, 3, 3, classes)
    assert sum(parameter.numel() for parameter in built.parameters()) == parameters


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_and_reverse_derivatives_agree_with_differences(name: str) -> None:
    """u . (J v) by jvp, by autograd, and by a central difference."""
    called, (x, t, classes) = network(name), arguments(name)

    def at(x: Tensor) -> Tensor:
        return called(x, t, classes)

    v = waves(*x.shape, phase=2.0)
    output, forward = torch.func.jvp(at, (x,), (v,))[:2]
    u = waves(*output.shape, phase=3.0)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((at(x) * u).sum(), x)
    with torch.no_grad():
        difference = (at(x + 1e-5 * v) - at(x - 1e-5 * v)) / 2e-5
        assert_close(output, at(x))
    assert_close((gradient * v).sum(), (u * forward).sum(), rtol=1e-10, atol=0)
    assert_close(forward, difference, rtol=0, atol=1e-7 * forward.abs().max().item())


@pytest.mark.parametrize("name", NETWORKS)
def test_images_do_not_see_each_other(name: str) -> None:
    called, (x, t, classes) = network(name), arguments(name, 3)
    together = called(x, t, classes)
    for i in range(3):
        alone = called(x[i : i + 1], t[i : i + 1], None if classes is None else classes[i : i + 1])
        assert_close(together[i : i + 1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["ddpmpp-classes", "ncsnpp-classes-skip", "adm-classes"])
def test_the_level_and_the_class_matter(name: str) -> None:
    called, (x, t, classes) = network(name), arguments(name)
    assert classes is not None
    output = called(x, t, classes)
    for other in (called(x, t + 0.5, classes), called(x, t, classes.flip(0)), called(x, t, 0 * classes)):
        assert (other - output).abs().max() > 1e-5


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_constants_pass_resampling_and_down_is_the_transpose_of_up(taps: tuple[int, ...]) -> None:
    up, down = (Conv(2, 2, 0, kind, taps).double() for kind in ("up", "down"))
    x, y = waves(1, 2, 8, 8), waves(1, 2, 4, 4, phase=1.0)
    ones = torch.ones(1, 2, 8, 8, dtype=torch.float64)
    # two pixels from the border, beyond which the images are zero
    assert_close(up(ones)[..., 2:-2, 2:-2], torch.ones(1, 2, 12, 12, dtype=torch.float64))
    assert_close(down(ones)[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2, dtype=torch.float64))
    assert_close((up(y) * x).sum(), 4 * (y * down(x)).sum())


def test_attention_of_half_precision_has_a_wide_softmax() -> None:
    """Logits of 1e6 overflow float16; in float32 the softmax is a one-hot vector."""
    qkv = 1000 * waves(1, 12, 2, 2).half()
    assert attention(qkv, 1).isfinite().all()
    assert_close(attention(qkv, 1).float(), attention(qkv.float(), 1), rtol=2e-3, atol=1)
