"""Captions: what the networks are shown, against diffusers' own pipelines, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.testing import assert_close

from tests.support.checkpoints import edit, problem
from tests.support.pipelines import CLIP_TOKENS, FLUX_RESOLUTION, TEXT_FAMILIES, build, unet_with_text
from volgrowth.errors import ModelError
from volgrowth.models import NetworkDenoiser, inspect_model, load_model
from volgrowth.models.load import DType
from volgrowth.models.pipelines import text
from volgrowth.models.pipelines.text import TextConditioner

CAPTION = "two cats"
LONG = "abc " * 40
LEVEL = torch.tensor(0.6, dtype=torch.float64)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build a folder of each family, which tests only read."""
    root = tmp_path_factory.mktemp("pipelines")
    for family in TEXT_FAMILIES:
        build(family, root / family)
    return {family: root / family for family in TEXT_FAMILIES}


@pytest.fixture
def sd1(pipelines: dict[str, Path], tmp_path: Path) -> Path:
    """Copy one folder, which the test may change."""
    return Path(shutil.copytree(pipelines["sd1"], tmp_path / "pipeline"))


def load(folder: Path, dtype: DType = "float64", **options: Any) -> NetworkDenoiser:
    if "flux" in folder.name:
        options["resolution"] = FLUX_RESOLUTION
    denoiser = load_model(str(folder), dtype=dtype, **options)
    assert isinstance(denoiser, NetworkDenoiser)
    return denoiser


def state(denoiser: NetworkDenoiser, count: int = 1, seed: int = 0) -> Tensor:
    assert denoiser.image_shape is not None
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *denoiser.image_shape, generator=generator, dtype=torch.float64)


def parts(denoiser: NetworkDenoiser, values: list[str | None]) -> dict[str, Tensor]:
    assert denoiser.conditioner is not None
    return denoiser.conditioner(values)


class Watched:
    """A wrapper of a pipeline's network that remembers its calls."""

    def __init__(self, folder: Path):
        self.pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True).to(torch.float64)
        self.pipeline.set_progress_bar_config(disable=True)
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = []
        network = getattr(self.pipeline, "unet", None) or self.pipeline.transformer
        network.register_forward_hook(self._remember, with_kwargs=True)

    def _remember(self, module: Any, args: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        self.calls.append((args, options, output[0]))

    def sample(self, **options: Any) -> None:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            self.pipeline(CAPTION, num_inference_steps=3, generator=generator, output_type="latent", **options)


@pytest.mark.parametrize("family", TEXT_FAMILIES[:-1])
def test_guided_sampling_asks_what_the_denoiser_asks(pipelines: dict[str, Path], family: str) -> None:
    """In the pipeline's second step: x, label and embeddings, without and with the caption, give one output."""
    watched = Watched(pipelines[family])
    watched.sample(guidance_scale=5.0, height=16, width=16)
    args, options, output = watched.calls[1]
    x, label = (args[0], args[1]) if args else (options["hidden_states"], options["timestep"])
    denoiser = load(pipelines[family])
    with torch.no_grad():
        ours = denoiser.network(x, label.double().expand(2), **parts(denoiser, [None, CAPTION]))
    assert_close(ours, output, rtol=1e-9, atol=1e-9)
    assert (ours[0] - ours[1]).abs().max() > 1e-6


@pytest.mark.parametrize("distilled", [True, False])
def test_flux_is_asked_as_its_pipeline_asks(tmp_path: Path, distilled: bool) -> None:
    folder = tmp_path / "flux"
    build("flux", folder, guidance_embeds=distilled)
    watched = Watched(folder)
    longest = {} if distilled else {"max_sequence_length": 256}
    watched.sample(guidance_scale=1.0, true_cfg_scale=2.0, negative_prompt="", height=16, width=16, **longest)
    denoiser = load(folder)
    for (_, options, output), value in zip(watched.calls[2:4], (CAPTION, None), strict=True):
        x = watched.pipeline._unpack_latents(options["hidden_states"], 16, 16, 2)
        with torch.no_grad():
            ours = denoiser.network(x, 1000 * options["timestep"], **parts(denoiser, [value]))
        assert_close(watched.pipeline._pack_latents(ours, *ours.shape), output, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("zeros", [True, False])
def test_the_null_condition_of_xl_is_what_its_index_says(tmp_path: Path, zeros: bool) -> None:
    build("sdxl", tmp_path)
    edit(tmp_path / "model_index.json", force_zeros_for_empty_prompt=zeros)
    found = parts(load(tmp_path), [None, ""])
    for name in ("encoder_hidden_states", "text_embeds"):
        null, empty = found[name]
        assert null.abs().max().item() == 0 if zeros else null.equal(empty)
        assert empty.abs().max() > 0


def test_settings_of_the_index_are_in_the_digest(tmp_path: Path) -> None:
    build("sdxl", tmp_path)
    digests = set()
    for zeros in (True, False):
        edit(tmp_path / "model_index.json", force_zeros_for_empty_prompt=zeros)
        digests.add(inspect_model(str(tmp_path)).hash)
    assert len(digests) == 2


def test_xl_is_told_the_size_of_its_images(pipelines: dict[str, Path]) -> None:
    for resolution in (None, 32):
        denoiser = load(pipelines["sdxl"], resolution=resolution)
        size = resolution or 16
        assert parts(denoiser, [None, CAPTION])["time_ids"].tolist() == [[size, size, 0, 0, size, size]] * 2


def test_sd3_without_t5(tmp_path: Path) -> None:
    build("sd3", tmp_path, t5=False)
    denoiser = load(tmp_path)
    embeddings = parts(denoiser, [CAPTION])["encoder_hidden_states"]
    nothing = {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True, **nothing).to(torch.float64)
    with torch.no_grad():
        expected = pipeline.encode_prompt([CAPTION], None, None)[0]
    assert_close(embeddings, expected, rtol=1e-12, atol=1e-12)
    assert embeddings[:, CLIP_TOKENS:].abs().max() == 0
    assert denoiser.overflow([LONG]) == [120 - (CLIP_TOKENS - 2)]


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_embeddings_do_not_depend_on_what_else_is_asked(pipelines: dict[str, Path], family: str) -> None:
    denoiser = load(pipelines[family], "float32")
    values = [CAPTION, None, "a dog", CAPTION, "", LONG]
    together = parts(denoiser, values)
    for row, value in enumerate(values):
        for name, tensor in parts(denoiser, [value]).items():
            assert tensor[0].equal(together[name][row])
    assert all(len(tensor) == 0 for tensor in parts(denoiser, []).values())


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_rows_of_a_batch_have_their_own_conditions(pipelines: dict[str, Path], family: str) -> None:
    denoiser = load(pipelines[family])
    values = [CAPTION, None, "a dog"]
    y = state(denoiser, 3)
    together = denoiser.given(values).noise(y, LEVEL)
    for row, value in enumerate(values):
        assert_close(denoiser.given([value]).noise(y[row][None], LEVEL)[0], together[row], rtol=1e-9, atol=1e-9)
    assert_close(denoiser.noise(y[1:2], LEVEL)[0], together[1], rtol=1e-9, atol=1e-9)


def test_overflow_is_what_no_encoder_reads(pipelines: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")
    values = [None, "", CAPTION, "a" * (CLIP_TOKENS - 2), "a" * CLIP_TOKENS, LONG]
    clip, t5 = [0, 0, 0, 0, 2, 110], [0] * 6
    expected = {"sd1": clip, "sd2": clip, "sdxl": clip, "sd3": t5, "flux": t5}
    for family, counts in expected.items():
        denoiser = load(pipelines[family])
        assert denoiser.overflow(values) == counts
        parts(denoiser, [LONG])
        assert family not in ("sd3", "flux") or denoiser.overflow(["a" * 600])[0] > 80
    assert not caplog.records


def test_what_is_cut_is_what_the_network_does_not_see(pipelines: dict[str, Path]) -> None:
    denoiser = load(pipelines["sd1"])
    seen, cut = "a" * (CLIP_TOKENS - 2), "a" * (CLIP_TOKENS - 3)
    # the last letter of a word is a token of its own, so what follows is put after more of the same
    first, second = (parts(denoiser, [f"{seen}{end}"])["encoder_hidden_states"] for end in ("b", "c"))
    assert first.equal(second)
    first, second = (parts(denoiser, [f"{cut}{end}"])["encoder_hidden_states"] for end in ("b", "c"))
    assert not first.equal(second)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_an_embedding_does_not_depend_on_the_captions_beside_it(
    pipelines: dict[str, Path], family: str, dtype: DType
) -> None:
    """Bit for bit, in batches as a GPU has them; and they are those of the captions one at a time, up to rounding."""
    alone: Any = load(pipelines[family], dtype).conditioner
    captions = [CAPTION, "a", LONG, "", "three dogs", "b c", "d"]
    expected = alone(captions)
    together = TextConditioner(alone._embed, alone.readers, at_once=4)(captions)
    tolerance = 1e-5 if dtype == "float32" else 0.05
    assert_close(together, expected, rtol=0.02, atol=tolerance)
    for order in ([6, 5, 4, 3, 2, 1, 0], [2], [3, 3, 1]):
        found = TextConditioner(alone._embed, alone.readers, at_once=4)([captions[row] for row in order])
        assert all(tensor.equal(together[name][order]) for name, tensor in found.items())


def test_encoders_without_memory_get_fewer_captions(sd1: Path) -> None:
    conditioner: Any = load(sd1).conditioner
    seen, captions = list[int](), [CAPTION, "a", "three dogs", "b c", "d"]

    def small(some: Any) -> dict[str, Any]:
        seen.append(0 if some is None else len(some))
        if some is not None and len(some) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return dict(conditioner._embed(some))

    tight = TextConditioner(small, conditioner.readers, at_once=4)
    assert_close(tight(captions), conditioner(captions), rtol=1e-9, atol=1e-9)
    assert (tight.at_once, seen) == (2, [4, 2, 2, 2, 0])

    def none(some: Any) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        TextConditioner(none, conditioner.readers, at_once=4)(captions)


def test_a_caption_is_encoded_once(sd1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as there is room for its embedding: then the one that was used longest ago makes room."""
    conditioner: Any = load(sd1).conditioner
    (pipeline,) = conditioner._embed.args
    seen: list[int] = []
    pipeline.text_encoder.register_forward_hook(lambda module, ids, output: seen.append(len(output[0])))
    first = conditioner(["a", None, "b", "a", None])["encoder_hidden_states"]
    assert sum(seen) == 2  # the null condition was encoded when the model was loaded
    assert conditioner(["b", "a"])["encoder_hidden_states"].equal(first[[2, 0]])
    assert sum(seen) == 2
    monkeypatch.setattr(text, "KEPT_BYTES", 2 * first[0].nbytes)
    assert conditioner(["c", "d", "e", "a"])["encoder_hidden_states"][3].equal(first[0])
    assert sum(seen) == 5
    conditioner(["e", "a"])
    assert sum(seen) == 5
    assert conditioner(["b"])["encoder_hidden_states"][0].equal(first[2])
    assert sum(seen) == 6


@pytest.mark.parametrize("value", [3, 2.5, ["a cat"], b"a cat"])
def test_a_caption_is_text(pipelines: dict[str, Path], value: Any) -> None:
    denoiser = load(pipelines["sd1"])
    with pytest.raises(ModelError, match="is no text: expected a string"):
        denoiser.given(["a cat", value])
    assert denoiser.conditioner is not None
    assert str(value)[:3] in (denoiser.conditioner.problem(value) or "")
    assert denoiser.conditioner.problem("a cat") is denoiser.conditioner.problem(None) is None


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_low_precision_is_that_of_network_and_encoders(pipelines: dict[str, Path], family: str) -> None:
    exact, rough = (load(pipelines[family], dtype) for dtype in ("float32", "bfloat16"))
    found = parts(rough, [CAPTION])
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert not any(tensor.requires_grad for tensor in found.values())
    y = state(exact, 2).float()
    low, high = (denoiser.given([CAPTION, None]).noise(y, LEVEL) for denoiser in (rough, exact))
    assert low.dtype == torch.float32
    assert_close(low, high, rtol=0.1, atol=0.1)


def test_a_variant_of_a_text_encoder(sd1: Path) -> None:
    expected = parts(load(sd1), [CAPTION])["encoder_hidden_states"]
    folder = sd1 / "text_encoder"
    encoder = transformers.CLIPTextModel.from_pretrained(folder).half()
    (folder / "model.safetensors").unlink()
    encoder.save_pretrained(folder, variant="fp16")
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.fp16.safetensors"]
    assert_close(parts(load(sd1), [CAPTION])["encoder_hidden_states"], expected, rtol=0.01, atol=0.01)


def test_the_digest_has_text_encoders_and_tokenizers(sd1: Path) -> None:
    digests = [inspect_model(str(sd1)).hash]
    weights = sd1 / "text_encoder" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    digests.append(inspect_model(str(sd1)).hash)
    edit(sd1 / "text_encoder" / "config.json", hidden_act="gelu")
    digests.append(inspect_model(str(sd1)).hash)
    edit(sd1 / "tokenizer" / "tokenizer_config.json", model_max_length=8)
    digests.append(inspect_model(str(sd1)).hash)
    assert len(set(digests)) == 4


def test_averaged_weights_beside_the_network(sd1: Path) -> None:
    """`EMAModel.save_pretrained`, whose config.json says how it averaged."""
    network = unet_with_text()
    ema = EMAModel(network.parameters(), model_cls=type(network), model_config=network.config, use_ema_warmup=True)
    ema.save_pretrained(sd1 / "unet_ema")
    assert "inv_gamma" in (sd1 / "unet_ema" / "config.json").read_text()
    averaged, plain = load(sd1, subfolder="unet_ema"), load(sd1)
    y = state(plain)
    assert averaged.pixel_shape == plain.pixel_shape == (3, 16, 16)
    assert (averaged.given([CAPTION]).noise(y, LEVEL) - plain.given([CAPTION]).noise(y, LEVEL)).abs().max() > 1e-3
    assert inspect_model(str(sd1), subfolder="unet_ema").hash != inspect_model(str(sd1)).hash
    images = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    assert averaged.embed(images).equal(plain.embed(images))
    with torch.no_grad():
        x = state(averaged)
        given = parts(averaged, [CAPTION])["encoder_hidden_states"]
        expected = network.double().eval()(x, torch.tensor(10.0), given).sample
        ours = averaged.network(x, torch.tensor([10.0], dtype=torch.float64), encoder_hidden_states=given)
    assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_a_network_alone_takes_the_rest_from_its_base(sd1: Path, tmp_path: Path) -> None:
    alone = tmp_path / "finetune"
    unet_with_text().save_pretrained(alone)
    assert problem(inspect_model, str(alone)) == (
        f"{alone} holds a UNet2DConditionModel alone, and no text encoders: name the StableDiffusionPipeline that it "
        f"belongs to with base (--base)"
    )
    denoiser = load(alone, base=str(sd1))
    assert denoiser.given([CAPTION]).noise(state(denoiser), LEVEL).shape == (1, 4, 8, 8)


def test_a_base_with_other_text_encoders(sd1: Path, tmp_path: Path) -> None:
    alone = tmp_path / "finetune"
    unet_with_text(cross_attention_dim=16).save_pretrained(alone)
    assert problem(load_model, str(alone), base=str(sd1)) == (
        f"the text encoders in {sd1} make embeddings of 8 numbers, and the network in {alone} reads 16: expected the "
        f"pipeline that it was trained in (--base)"
    )


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / name)


def unnamed(name: str) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "model_index.json", **{name: [None, None]})


def classed(name: str, library: str, kind: str) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "model_index.json", **{name: [library, kind]})


def pickled(folder: Path) -> None:
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "pytorch_model.bin")


def configured(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "unet" / "config.json", **changes)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no encoder": (without("text_encoder"), "has no text_encoder: expected all text encoders"),
    "no tokenizer": (without("tokenizer"), "has no tokenizer: expected all text encoders"),
    "encoder left out": (unnamed("text_encoder"), "has no text_encoder"),
    "tokenizer left out": (unnamed("tokenizer"), "has no tokenizer"),
    "other encoder": (classed("text_encoder", "transformers", "BertModel"), "BertModel: expected one of CLIPText"),
    "other tokenizer": (classed("tokenizer", "transformers", "BertTokenizer"), "BertTokenizer: expected one of CLIP"),
    "own code": (classed("text_encoder", "mine", "Encoder"), "brings code of its own (text_encoder)"),
    "pickle": (pickled, "only the pickle pytorch_model.bin"),
    "no autoencoder": (unnamed("vae"), "an autoencoder around it"),
    "XL network": (configured(addition_embed_type="text_time"), "belongs to a StableDiffusionXLPipeline"),
    "other additions": (configured(addition_embed_type="image"), "has addition_embed_type 'image'"),
    "inpainting": (configured(in_channels=9), "in_channels 9 and out_channels 4: expected a network that is shown"),
    "classes": (configured(num_class_embeds=10), "sets num_class_embeds to 10"),
    "class embedding": (configured(class_embed_type="timestep"), "sets class_embed_type to 'timestep'"),
    "images": (configured(encoder_hid_dim_type="image_proj"), "sets encoder_hid_dim_type to 'image_proj'"),
    "distilled": (configured(time_cond_proj_dim=256), "sets time_cond_proj_dim to 256"),
    "other range": (configured(center_input_sample=True), "sets center_input_sample to True"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_loaded(sd1: Path, case: str) -> None:
    change, expected = REFUSED[case]
    change(sd1)
    assert expected in problem(inspect_model, str(sd1))


def longer(folder: Path) -> None:
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=CLIP_TOKENS + 1)


def damaged(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(bytes(64))

    return damage


def deeper(folder: Path) -> None:
    edit(folder / "text_encoder" / "config.json", num_hidden_layers=3)


LOADING: dict[str, tuple[Callable[[Path], None], str]] = {
    "tokenizer too long": (longer, "gives 13 tokens, and the encoder reads 12: set model_max_length"),
    "damaged tokenizer": (damaged("tokenizer/tokenizer.json"), "the tokenizer in"),
    "damaged encoder": (damaged("text_encoder/model.safetensors"), "cannot be loaded"),
    "another encoder's weights": (deeper, "tensors of the text encoder"),
}


@pytest.mark.parametrize("case", LOADING)
def test_refused_when_loaded(sd1: Path, case: str) -> None:
    change, expected = LOADING[case]
    change(sd1)
    assert expected in problem(load_model, str(sd1))


def test_networks_shown_more_than_latents_are_refused(tmp_path: Path) -> None:
    """Flux Fill and Control, whose tokens hold more than they predict."""
    build("flux", tmp_path)
    edit(tmp_path / "transformer" / "config.json", in_channels=32, out_channels=16)
    assert "in_channels 32 and out_channels 16" in problem(inspect_model, str(tmp_path), resolution=16)


def test_sizes_that_a_transformer_cannot_take(pipelines: dict[str, Path]) -> None:
    message = problem(inspect_model, str(pipelines["sd3"]), resolution=64)
    assert "has positions for 8 x 8 tokens, and images of 64 x 64 pixels need more" in message
    assert "expected multiples of 4" in problem(inspect_model, str(pipelines["flux"]), resolution=18)
    assert inspect_model(str(pipelines["flux"])).image_shape == (3, 1024, 1024)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_weights_are_frozen_and_images_are_not(pipelines: dict[str, Path], family: str) -> None:
    denoiser = load(pipelines[family])
    conditioner: Any = denoiser.conditioner
    (pipeline,) = conditioner._embed.args
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert len(modules) == len(conditioner.readers) + 1
    for module in modules:
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
    y = state(denoiser).requires_grad_()
    denoiser.given([CAPTION]).noise(y, LEVEL).sum().backward()
    assert y.grad is not None
    assert y.grad.abs().max() > 0
