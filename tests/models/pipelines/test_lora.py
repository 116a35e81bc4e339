"""Low-rank weights: fused here, as diffusers' own pipelines apply them; and files that belong elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from tests.support.checkpoints import problem
from tests.support.pipelines import FLUX_RESOLUTION, TEXT_FAMILIES, build
from volgrowth.models import NetworkDenoiser, inspect_model, load_model
from volgrowth.models.load import DType

FILE = "pytorch_lora_weights.safetensors"
RANK, ALPHA = 2, 3
CAPTION = "two cats"


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    for family in (*TEXT_FAMILIES, "dit", "ddpm"):
        build(family, root / family)
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture(scope="module")
def loras(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Save for each family a file for network and text encoders, as diffusers does."""
    root = tmp_path_factory.mktemp("loras")
    for family in TEXT_FAMILIES:
        save_lora(pipelines[family], root / family)
    return {family: root / family / FILE for family in TEXT_FAMILIES}


def save_lora(pipeline_folder: Path, folder: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(pipeline_folder, local_files_only=True)
    generator = torch.Generator().manual_seed(5)
    layers: dict[str, Any] = {}
    for name in pipeline._lora_loadable_modules:
        module = getattr(pipeline, name, None)
        if module is None:
            continue
        targets = ["q_proj", "out_proj", "fc1"] if "text" in name else ["to_q", "to_k", "to_out.0"]
        module.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets))
        state = get_peft_model_state_dict(module, adapter_name="default")
        layers[f"{name}_lora_layers"] = {
            key: 0.3 * torch.randn(tensor.shape, generator=generator) for key, tensor in state.items()
        }
        layers[f"{name}_lora_adapter_metadata"] = module.peft_config["default"].to_dict()
    type(pipeline).save_lora_weights(folder, **layers)


def load(folder: Path, lora: Path | None, dtype: DType = "float64") -> NetworkDenoiser:
    resolution = FLUX_RESOLUTION if folder.name == "flux" else None
    denoiser = load_model(str(folder), dtype=dtype, lora=str(lora) if lora else None, resolution=resolution)
    assert isinstance(denoiser, NetworkDenoiser)
    return denoiser


def output(denoiser: NetworkDenoiser, x: Tensor, label: float) -> Tensor:
    assert denoiser.conditioner is not None
    labels = torch.full((len(x),), label, dtype=x.dtype)
    with torch.no_grad():
        return denoiser.network(x, labels, **denoiser.conditioner([CAPTION]))


def asked(folder: Path, lora: Path) -> tuple[Tensor, float, Tensor]:
    """Return x, label and output of the network in the second step, with the weights applied but not fused."""
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True).to(torch.float64)
    pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    calls: list[tuple[Tensor, float, Tensor]] = []

    def remember(module: Any, args: tuple[Any, ...], options: dict[str, Any], found: Any) -> None:
        x, label = (args[0], args[1]) if args else (options["hidden_states"], options["timestep"])
        calls.append((x, float(label.flatten()[0]), found[0]))

    (getattr(pipeline, "unet", None) or pipeline.transformer).register_forward_hook(remember, with_kwargs=True)
    generator = torch.Generator().manual_seed(1)
    options = {"num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "latent"}
    with torch.no_grad():
        pipeline(CAPTION, height=16, width=16, generator=generator, **options)
    x, label, found = calls[1]
    if folder.name == "flux":
        x, found = (pipeline._unpack_latents(tokens, 16, 16, 2) for tokens in (x, found))
        label = 1000 * label
    return x, label, found


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_fused_as_the_pipeline_applies_them(pipelines: dict[str, Path], loras: dict[str, Path], family: str) -> None:
    x, label, expected = asked(pipelines[family], loras[family])
    denoiser = load(pipelines[family], loras[family])
    # some matrices stay in float32 where they are not fused
    assert_close(output(denoiser, x, label), expected, rtol=1e-5, atol=1e-6)
    plain = load(pipelines[family], None)
    assert (output(plain, x, label) - expected).abs().max() > 1e-3
    name = "encoder_hidden_states" if family != "flux" else "pooled_projections"
    ours, bare = (found.conditioner([CAPTION])[name] for found in (denoiser, plain) if found.conditioner)
    assert (ours - bare).abs().max() > 1e-3


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_nothing_of_them_is_left_beside_the_weights(
    pipelines: dict[str, Path], loras: dict[str, Path], family: str
) -> None:
    conditioner: Any = load(pipelines[family], loras[family]).conditioner
    (pipeline,) = conditioner._embed.args
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            names = [name for name, _ in module.named_parameters()]
            assert not any("lora" in name or "base_layer" in name for name in names)
            assert not any(parameter.requires_grad for parameter in module.parameters())
            assert {parameter.dtype for parameter in module.parameters()} == {torch.float64}
            assert not any(part.training for part in module.modules())


def kohya(path: Path, target: Path) -> Path:
    """Rename the matrices as kohya's scripts do, with an alpha for each module."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in load_file(path).items():
        component, _, name = key.partition(".")
        module, _, kind = name.rpartition(".lora_")
        prefix = {"unet": "lora_unet", "text_encoder": "lora_te_text_model"}[component]
        flat = f"{prefix}_{module.removeprefix('text_model.')}".replace(".", "_")
        tensors[f"{flat}.lora_{'down' if kind == 'A.weight' else 'up'}.weight"] = tensor
        tensors[f"{flat}.alpha"] = torch.tensor(float(ALPHA))
    save_file(tensors, target)
    return target


def test_files_of_kohyas_scripts(pipelines: dict[str, Path], loras: dict[str, Path], tmp_path: Path) -> None:
    path = kohya(loras["sd1"], tmp_path / "kohya.safetensors")
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = (output(load(pipelines["sd1"], lora), x, 20.0) for lora in (path, loras["sd1"]))
    assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_alpha_and_rank_scale_them(pipelines: dict[str, Path], loras: dict[str, Path]) -> None:
    """The fused weights are W + alpha / rank B A."""
    tensors = load_file(loras["sd1"])
    key = next(key for key in tensors if key.endswith("attn1.to_q.lora_A.weight"))
    module = key.removeprefix("unet.").removesuffix(".lora_A.weight")
    update = tensors[key.replace("lora_A", "lora_B")].double() @ tensors[key].double()
    weights = []
    for lora in (None, loras["sd1"]):
        conditioner: Any = load(pipelines["sd1"], lora).conditioner
        (pipeline,) = conditioner._embed.args
        weights.append(pipeline.unet.get_submodule(module).weight)
    assert_close(weights[1] - weights[0], ALPHA / RANK * update, rtol=1e-5, atol=1e-6)


def test_in_low_precision(pipelines: dict[str, Path], loras: dict[str, Path]) -> None:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    low, high = (load(pipelines["sd1"], loras["sd1"], dtype) for dtype in ("bfloat16", "float32"))
    assert_close(output(low, x.bfloat16(), 20.0).float(), output(high, x, 20.0), rtol=0.1, atol=0.1)


def test_the_digest_has_them(pipelines: dict[str, Path], loras: dict[str, Path], tmp_path: Path) -> None:
    changed = {key: 2 * tensor for key, tensor in load_file(loras["sd1"]).items()}
    save_file(changed, tmp_path / "other.safetensors")
    names = (None, str(loras["sd1"]), str(tmp_path / "other.safetensors"))
    assert len({inspect_model(str(pipelines["sd1"]), lora=lora).hash for lora in names}) == 3


def save(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path)
    return path


def changed(path: Path, change: Callable[[str, Tensor], tuple[str, Tensor]], target: Path) -> Path:
    return save(target, dict(change(key, tensor) for key, tensor in load_file(path).items()))


@pytest.mark.parametrize(("family", "other"), [("sd1", "flux"), ("sd1", "sdxl"), ("sd3", "flux"), ("flux", "sd1")])
def test_of_another_network(pipelines: dict[str, Path], loras: dict[str, Path], family: str, other: str) -> None:
    options = {"resolution": FLUX_RESOLUTION} if family == "flux" else {}
    message = problem(load_model, str(pipelines[family]), lora=str(loras[other]), **options)
    assert f"the lora {loras[other]} does not belong to this" in message
    assert message.endswith("expected one that was trained on the same network")


def test_of_another_size(pipelines: dict[str, Path], loras: dict[str, Path], tmp_path: Path) -> None:
    def wider(key: str, tensor: Tensor) -> tuple[str, Tensor]:
        return key, torch.cat([tensor, tensor], 1) if "lora_A" in key else tensor

    path = changed(loras["sd1"], wider, tmp_path / "wider.safetensors")
    assert "does not belong to this UNet2DConditionModel" in problem(load_model, str(pipelines["sd1"]), lora=str(path))


def test_with_matrices_that_have_no_place(pipelines: dict[str, Path], loras: dict[str, Path], tmp_path: Path) -> None:
    """Diffusers would only warn about them."""
    extra = {f"unet.mid_block.attentions.7.to_q.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    path = save(tmp_path / "extra.safetensors", {**load_file(loras["sd1"]), **extra})
    message = problem(load_model, str(pipelines["sd1"]), lora=str(path))
    assert "does not belong to this UNet2DConditionModel" in message
    part = {key.replace("text_encoder.", "text_encoder_9."): value for key, value in load_file(loras["sd1"]).items()}
    path = save(tmp_path / "part.safetensors", part)
    assert "there is no place for 12 of its tensors" in problem(load_model, str(pipelines["sd1"]), lora=str(path))


def test_files_that_hold_none(pipelines: dict[str, Path], loras: dict[str, Path], tmp_path: Path) -> None:
    model = str(pipelines["sd1"])
    other = save(tmp_path / "other.safetensors", {"emb_params": torch.ones(2)})
    assert "holds no low-rank weights, but emb_params" in problem(inspect_model, model, lora=str(other))
    dora = save(tmp_path / "dora.safetensors", {**load_file(loras["sd1"]), "unet.a.dora_scale": torch.ones(1)})
    assert "is a DoRA, which diffusers applies in part" in problem(inspect_model, model, lora=str(dora))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(bytes(32))
    assert "cannot be read" in problem(inspect_model, model, lora=str(damaged))


@pytest.mark.parametrize(("family", "kind"), [("dit", "DiTTransformer2DModel"), ("ddpm", "UNet2DModel")])
def test_networks_that_take_none(pipelines: dict[str, Path], loras: dict[str, Path], family: str, kind: str) -> None:
    message = problem(inspect_model, str(pipelines[family]), lora=str(loras["sd1"]))
    assert f"holds {kind}, which takes no lora" in message
