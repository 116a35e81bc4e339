"""EDM folders: preconditionings by an exact network, what is loaded, and what is refused."""

import json
import re
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from tests.models.edm.test_unets import filled, waves
from tests.support.checkpoints import edit, problem
from volgrowth.models import NetworkDenoiser
from volgrowth.models.edm import EDMFolder, inspect_edm, is_edm
from volgrowth.models.edm.unets import ARCHITECTURES
from volgrowth.numerics import VESchedule, trace_growth, volume_growth
from volgrowth.numerics.tangents import Derivative

CPU = torch.device("cpu")
DERIVATIVES: tuple[Derivative, ...] = ("jvp", "difference")
TINY: dict[str, Any] = {"img_resolution": 8, "img_channels": 1, "model_type": "SongUNet"}
TINY_NETWORK: dict[str, Any] = {
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}
FOURIER: dict[str, Any] = {"embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual"}
SIGMA_DATA = {"EDMPrecond": {"sigma_data": 0.7}}
NUMBERS = {
    *TINY,
    *("label_dim", "use_fp16", "sigma_min", "sigma_max", "sigma_data", "beta_d", "beta_min", "M", "epsilon_t"),
    *("C_1", "C_2"),
}
CLASSES = ("EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond")

MEAN = torch.linspace(-0.5, 0.5, 64, dtype=torch.float64).reshape(1, 8, 8)
VARIANCE = torch.linspace(0, 0.8, 64, dtype=torch.float64).reshape(1, 8, 8)


def save_edm(folder: Path, kind: str = "EDMPrecond", prefix: str = "model.", **changes: Any) -> dict[str, Tensor]:
    """Save a folder with a tiny network in float32 and return its weights under the network's own names."""
    network_values = {**TINY_NETWORK, **{key: value for key, value in changes.items() if key not in NUMBERS}}
    numbers = {key: value for key, value in changes.items() if key in NUMBERS}
    values = {"_class_name": kind, **SIGMA_DATA.get(kind, {}), **TINY, **numbers}
    outputs = values["img_channels"] * (2 if kind == "iDDPMPrecond" else 1)
    with torch.device("meta"):
        empty = ARCHITECTURES[values["model_type"]](**network_values).network(
            values["img_resolution"], values["img_channels"], outputs, values.get("label_dim", 0)
        )
    tensors = {name: tensor.float().contiguous() for name, tensor in filled(empty).state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(values | network_values))
    return tensors


def load64(folder: Path) -> NetworkDenoiser:
    return inspect_edm(folder).load(torch.float64, torch.float64, CPU)


@cache
def cosine_levels() -> Tensor:
    """u_{M-1} to u_0 of improved DDPM with NVlabs' C_1, C_2 and M, by the recursion as the paper writes it."""
    u, levels = torch.tensor(0.0, dtype=torch.float64), []
    a = (torch.pi / 2 * torch.arange(1001, dtype=torch.float64) / 1000 / 1.008).sin() ** 2
    for j in range(1000, 0, -1):
        u = ((u**2 + 1) / torch.maximum(a[j - 1] / a[j], torch.tensor(0.001)) - 1).sqrt()
        levels.append(u)
    return torch.stack(levels)


def clean(y: Tensor, level: Tensor) -> Tensor:
    """E[x_0 | y] for x_0 ~ N(MEAN, diag VARIANCE)."""
    return MEAN + VARIANCE / (VARIANCE + level**2) * (y - MEAN)


def exact(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a perfectly trained F, which knows only its two inputs (arXiv 2206.00364, eq. 7, table 1)."""

    def network(x: Tensor, labels: Tensor) -> Tensor:
        assert labels.shape == (len(x),)
        c = labels[:, None, None, None]
        if kind == "EDMPrecond":
            level, d = (4 * c).exp(), 0.7
            y = x * (level**2 + d**2).sqrt()
            c_skip, c_out = d**2 / (level**2 + d**2), level * d / (level**2 + d**2).sqrt()
            return (clean(y, level) - c_skip * y) / c_out
        if kind == "VEPrecond":
            level = 2 * c.exp()
            return (clean(x, level) - x) / level
        if kind == "VPPrecond":
            t = c / 999
            level = torch.expm1(19.9 * t**2 / 2 + 0.1 * t).sqrt()
        else:
            assert_close(c, c.round(), rtol=0, atol=1e-6)
            level = cosine_levels()[c.round().long()]
        y = x * (level**2 + 1).sqrt()
        return (y - clean(y, level)) / level

    return network


@pytest.fixture(scope="module", params=CLASSES)
def oracle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[NetworkDenoiser, Tensor]:
    """Load a folder, replace its network by an exact one, and return it with noise levels that it was trained on."""
    folder = tmp_path_factory.mktemp("oracle")
    save_edm(folder, request.param)
    denoiser = load64(folder)
    denoiser.network = exact(request.param)
    levels = torch.tensor([0.05, 0.2, 0.7, 2.0, 9.0], dtype=torch.float64)
    if request.param == "iDDPMPrecond":
        levels = cosine_levels()[[3, 40, 300, 700, 950]]
    return denoiser, levels


def test_an_exact_network_gives_the_gaussian_posterior(oracle: tuple[NetworkDenoiser, Tensor]) -> None:
    denoiser, levels = oracle
    y, level = waves(5, 1, 8, 8), levels[:, None, None, None]
    assert_close(denoiser(y, levels), clean(y, level), rtol=0, atol=1e-9)
    assert_close(denoiser.noise(y, levels), (y - clean(y, level)) / level, rtol=0, atol=1e-9)


def test_volume_growth_is_the_product_of_the_steps(oracle: tuple[NetworkDenoiser, Tensor]) -> None:
    """ddim multiplies axis i by 1 + (s - t) t / (variance_i + t^2) from level t to level s."""
    denoiser, levels = oracle
    steps = 1 + (levels.diff() * levels[:-1])[:, None] / (VARIANCE.flatten() + levels[:-1, None] ** 2)
    axes = [3, 17, 60]
    growth = volume_growth(
        denoiser,
        waves(2, 1, 8, 8),
        schedule=denoiser.schedule,
        times=denoiser.schedule.time(levels),
        solver="ddim",
        tangents=torch.eye(64, dtype=torch.float64)[axes].reshape(1, 3, 1, 8, 8).expand(2, 3, 1, 8, 8),
        coordinates="y",
    )
    expected = steps[:, axes].log().sum(1).cumsum(0)
    assert_close(growth.log_volume, expected.expand(2, -1), rtol=0, atol=1e-6)


def test_trace_growth_is_the_sum_over_axes(oracle: tuple[NetworkDenoiser, Tensor]) -> None:
    denoiser, levels = oracle
    rate = (levels[:, None] ** 2 / (VARIANCE.flatten() + levels[:, None] ** 2)).sum(1)
    traces = trace_growth(denoiser, waves(2, 1, 8, 8), levels)
    assert_close(traces.rate, rate.expand(2, -1), rtol=0, atol=1e-6)
    assert_close(traces.log_volume, torch.trapezoid(rate, levels.log()).expand(2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", CLASSES)
def test_samples_are_drawn_at_karras_levels(tmp_path: Path, kind: str) -> None:
    save_edm(tmp_path, kind)
    denoiser = load64(tmp_path)
    low, high = denoiser.noise_levels
    low, high = max(low, 0.002), min(high, 80)
    i = torch.arange(18, dtype=torch.float64)
    levels = (low ** (1 / 7) + i / 17 * (high ** (1 / 7) - low ** (1 / 7))) ** 7
    if kind == "iDDPMPrecond":
        table = cosine_levels()
        levels = torch.stack([table[(table - level).abs().argmin()] for level in levels])
    assert_close(denoiser.sampling_levels(18), levels, rtol=1e-9, atol=0)


def test_the_ranges_are_those_of_nvlabs(tmp_path: Path) -> None:
    expected = {"EDMPrecond": (0.002, 80), "VEPrecond": (0.02, 100), "VPPrecond": (1.0e-3, 152.2)}
    for kind, levels in expected.items():
        save_edm(tmp_path / kind, kind)
        assert load64(tmp_path / kind).noise_levels == pytest.approx(levels, rel=1e-3)
    save_edm(tmp_path / "narrow", sigma_min=0.1, sigma_max=20)
    assert load64(tmp_path / "narrow").noise_levels == (0.1, 20)


@pytest.mark.parametrize(("kind", "channels"), product(CLASSES, [1, 3]))
def test_the_loaded_network_is_what_is_measured(tmp_path: Path, kind: str, channels: int) -> None:
    """The variance in iDDPM's output is dropped; names may be those of the network alone."""
    save_edm(tmp_path / "whole", kind, img_channels=channels)
    save_edm(tmp_path / "alone", kind, img_channels=channels, prefix="")
    y, level = waves(2, channels, 8, 8), torch.tensor(0.5, dtype=torch.float64)
    first, second = load64(tmp_path / "whole"), load64(tmp_path / "alone")
    assert first(y, level).shape == y.shape
    assert first(y, level).equal(second(y, level))
    if kind == "VEPrecond":
        network = inspect_edm(tmp_path / "whole").empty_network()
        tensors = load_file(tmp_path / "alone" / "model.safetensors")
        network.load_state_dict({name: tensor.double() for name, tensor in tensors.items()}, assign=True)
        expected = y + level * network(y, (level / 2).log().expand(2))
        assert_close(first(y, level), expected, rtol=0, atol=1e-12)


def test_what_is_said_of_a_folder(tmp_path: Path) -> None:
    tensors = save_edm(tmp_path, label_dim=10)
    model = inspect_edm(tmp_path)
    assert isinstance(model, EDMFolder)
    assert is_edm(tmp_path)
    info = model.info("mine")
    assert (info.name, info.kind, info.image_shape, info.state_shape) == ("mine", "EDMPrecond", (1, 8, 8), (1, 8, 8))
    assert (info.condition, info.has_null, info.latent_shape) == ("class", False, None)
    assert info.parameters == sum(tensor.numel() for tensor in tensors.values())
    edit(tmp_path / "config.json", sigma_data=0.5)
    after = inspect_edm(tmp_path).info("mine").hash
    assert info.hash != after
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    assert inspect_edm(tmp_path).info("mine").hash not in (info.hash, after)


def test_classes_are_one_hot_and_none_is_zeros(tmp_path: Path) -> None:
    save_edm(tmp_path, label_dim=4, label_dropout=0.1)
    denoiser = load64(tmp_path)
    assert (denoiser.condition, denoiser.has_null) == ("class", True)
    seen: list[Tensor] = []

    def network(x: Tensor, labels: Tensor, class_labels: Tensor) -> Tensor:
        seen.append(class_labels)
        return x

    denoiser.network = network
    y, level = waves(3, 1, 8, 8), torch.tensor(0.5, dtype=torch.float64)
    denoiser.given([2, None, 0])(y, level)
    denoiser(y, level)
    assert seen[0].tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert seen[1].tolist() == [[0] * 4] * 3
    assert problem(denoiser.given, [4]) == "class 4 is none of the model's: expected 0 to 3"
    given = load64(tmp_path).given([0, 1, None])(y, level)
    assert (given[0] - load64(tmp_path).given([3, 1, None])(y, level)[0]).abs().max() > 1e-6


def test_without_label_dropout_there_is_no_null_class(tmp_path: Path) -> None:
    save_edm(tmp_path, label_dim=4)
    denoiser = load64(tmp_path)
    assert not denoiser.has_null
    denoiser.given([3])
    assert "label_dropout" in problem(denoiser.given, [None])
    assert "class column" in problem(denoiser, waves(1, 1, 8, 8), torch.tensor(0.5))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_a_network_in_low_precision_keeps_its_frequencies(tmp_path: Path, precision: torch.dtype) -> None:
    """A frequency of 16 rounded to bfloat16 is off by 0.06, which would change the angles of all labels."""
    save_edm(tmp_path, **FOURIER)
    y, level = waves(2, 1, 8, 8), torch.tensor(3.0, dtype=torch.float64)
    exact = load64(tmp_path)(y, level)
    low = inspect_edm(tmp_path).load(torch.float32, precision, CPU)
    assert (low.dtype, low.precision) == (torch.float32, precision)
    found = low(y.float(), level)
    assert found.dtype == torch.float32
    assert_close(found.double(), exact, rtol=0, atol=30 * torch.finfo(precision).eps)


def test_weights_in_several_files(tmp_path: Path) -> None:
    tensors = save_edm(tmp_path / "one")
    save_edm(tmp_path / "two")
    names = sorted(tensors)
    (tmp_path / "two" / "model.safetensors").unlink()
    for i, part in enumerate((names[::2], names[1::2]), 1):
        save_file({name: tensors[name] for name in part}, tmp_path / "two" / f"model-0000{i}-of-00002.safetensors")
    y, level = waves(2, 1, 8, 8), torch.tensor(0.5, dtype=torch.float64)
    assert load64(tmp_path / "one")(y, level).equal(load64(tmp_path / "two")(y, level))


@pytest.mark.parametrize("values", [{}, FOURIER, {"model_type": "DhariwalUNet", "attn_resolutions": [8]}], ids=str)
def test_growth_of_a_network_by_jvp_and_by_differences(tmp_path: Path, values: dict[str, Any]) -> None:
    save_edm(tmp_path, **{"label_dim": 3, **values})
    denoiser = load64(tmp_path).given([0, 2])
    levels = torch.tensor([0.3, 0.5, 0.8], dtype=torch.float64)
    tangents = waves(2, 2, 1, 8, 8, phase=1.0)
    jvp, difference = (
        volume_growth(
            denoiser,
            waves(2, 1, 8, 8),
            schedule=VESchedule(),
            times=levels,
            solver="heun",
            derivative=derivative,
            radius=1e-5,
            tangents=tangents,
        ).log_volume
        for derivative in DERIVATIVES
    )
    assert_close(jvp, difference, rtol=0, atol=1e-5)


def config(*drop: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", *drop, **changes)


def weights(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path)

    return apply


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "edm-cifar10.pkl").write_bytes(b"")


def pickle_alone(folder: Path) -> None:
    pickle_only(folder)
    (folder / "config.json").unlink()


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "many blocks": (config(num_blocks=10**9), "asks for 1000000000 blocks on each of"),
    "many levels": (
        config(channel_mult=[1] * 10**5),
        "blocks on each of 100000 levels, and the weights beside it hold",
    ),
    "many channels": (config(model_channels=65_536), "tensors of other shapes"),
    "large images": (config(img_resolution=60_000), "has img_resolution 60000: expected at most 16384 pixels"),
    "unknown class": (config(_class_name="EDM2Precond"), "expected one of EDMPrecond, VPPrecond"),
    "no class": (config("_class_name"), "expected one of EDMPrecond"),
    "unknown network": (config(model_type="EDM2UNet"), "expected one of SongUNet, DhariwalUNet"),
    "no network": (config("model_type"), "has model_type None: expected one of"),
    "no resolution": (config("img_resolution"), "lacks img_resolution"),
    "no sigma_data": (config("sigma_data"), "lacks sigma_data"),
    "zero sigma_data": (config(sigma_data=0), "has sigma_data 0: expected greater than 0"),
    "five channels": (config(img_channels=5), "has img_channels 5: expected 1 or 3"),
    "unknown argument": (config(num_heads=3), "has num_heads, which is no argument of SongArchitecture"),
    "another class's": (config(beta_d=19.9), "has beta_d, which is no argument"),
    "unknown encoder": (config(encoder_type="skip"), "has encoder_type 'skip': expected 'standard' or 'residual'"),
    "text": (config(num_blocks="many"), "has num_blocks 'many'"),
    "levels": (config(sigma_min=3, sigma_max=1), "makes no network (noise levels run from 3 to 1)"),
    "odd size": (config(img_resolution=9), "img_resolution 9 cannot be halved 1 times"),
    "odd width": (config(model_channels=3), "makes no network"),
    "other width": (config(model_channels=16), "tensors of other shapes"),
    "more blocks": (config(num_blocks=2), "of other shapes|lack .* tensors of the network"),
    "other classes": (config(label_dim=3), "lack 2 tensors of the network, map_label.bias among them"),
    "fewer arguments": (config(attn_resolutions=[2]), "tensors that the network has no place for"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "expected model.safetensors"),
    "a tensor less": (weights(lambda t: {k: v for k, v in t.items() if "out" not in k and "aux" not in k}), "lack 4"),
    "damaged": (cut, "cannot be loaded"),
    "pickle": (pickle_only, "volgrowth convert .*edm-cifar10.pkl NEW_FOLDER --allow-pickle"),
    "pickle alone": (pickle_alone, "volgrowth convert .*edm-cifar10.pkl NEW_FOLDER --allow-pickle"),
    "json": (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(tmp_path: Path, case: str) -> None:
    save_edm(tmp_path)
    damage, expected = REFUSED[case]
    damage(tmp_path)
    message = problem(inspect_edm, tmp_path)
    assert re.search(expected.replace("(", r"\(").replace(")", r"\)"), message), message


def test_which_folders_are_edm(tmp_path: Path) -> None:
    save_edm(tmp_path / "edm")
    assert is_edm(tmp_path / "edm")
    edit(tmp_path / "edm" / "config.json", _class_name="Mine")
    assert is_edm(tmp_path / "edm")
    pickle_alone(tmp_path / "edm")
    assert is_edm(tmp_path / "edm")
    (tmp_path / "edm" / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    assert not is_edm(tmp_path / "edm")
    assert not is_edm(tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model._orig_mod."])
def test_prefixes_of_wrappers_are_left_out_and_said(tmp_path: Path, prefix: str) -> None:
    save_edm(tmp_path / "plain", prefix="")
    save_edm(tmp_path / "wrapped", prefix=prefix)
    y, level = waves(2, 1, 8, 8), torch.tensor(0.5, dtype=torch.float64)
    assert load64(tmp_path / "wrapped")(y, level).equal(load64(tmp_path / "plain")(y, level))
    assert inspect_edm(tmp_path / "plain").info("mine").notes == ()
    assert (
        "of torch.compile or DistributedDataParallel, which were left"
        in inspect_edm(tmp_path / "wrapped").info("mine").notes[0]
    )
