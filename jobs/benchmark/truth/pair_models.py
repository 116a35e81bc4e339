"""The models of the conditional cases: a UNet under classes in pixels, and a small Stable Diffusion under captions."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.benchmark.truth.captions import WIDTH, embed_captions, text_encoder, train_tokenizer
from jobs.benchmark.truth.pairs import CLASSES, NO_CLASS, PairCase, PairSetup
from jobs.benchmark.truth.training import Autoencoder, denoising_loss, encode_images, train_autoencoder
from volgrowth.audit.sampling.drawing import draw_samples, guided
from volgrowth.audit.sampling.sample_files import AT_ONCE
from volgrowth.demo.cases import to_tensor
from volgrowth.demo.training import fit, untrained
from volgrowth.models import load_model
from volgrowth.numerics import Denoiser
from volgrowth.numerics.denoisers import Condition, GuidedDenoiser

# samples without a condition, and their seed, which no other sample has
FREE, FREE_SEED = 500, 1
# of low-rank weights, and their file
RANK, WEIGHTS = 8, "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class PairTrained:
    """A conditional case, its model, and what the model makes.

    Attributes:
        asked: number of the condition, in `PairCase.conditions`, of each sample, (S,).
        samples: samples under these conditions, (S, C, H, W) uint8.
        guided: samples under the same conditions and from the same noise, with guidance.
        free: samples without a condition.
        lora: low-rank weights that are added to the model; None for none.
    """

    setup: PairSetup
    seed: int
    case: PairCase
    model: Path
    asked: np.ndarray
    samples: np.ndarray
    guided: np.ndarray
    free: np.ndarray
    lora: Path | None = None

    @property
    def home(self) -> Path:
        """The folder of this case's measurements: that of its model, or of its low-rank weights."""
        return (self.lora or self.model).parent

    def load(self) -> Denoiser:
        """Load the model."""
        return load_model(str(self.model), lora=str(self.lora) if self.lora else None)


def load_null(denoiser: Denoiser, kind: str) -> Denoiser:
    """Return the model without a condition: a text model as it is loaded, a class model under the label for none."""
    return denoiser.given([NO_CLASS]) if kind == "class" else denoiser


def pair_home(setup: PairSetup, seed: int, case: PairCase, cache: Path) -> Path:
    """Return the folder of a case's model and samples, whose name changes with all that they depend on."""
    content = case.labelled.train.tobytes() + case.condition.tobytes() + case.labelled.family.tobytes()
    settings = f"({setup.key}, {Autoencoder()!r}, {seed!r}, {torch.__version__!r})"
    return cache / f"{setup.name}-{seed}-{hashlib.sha256(content + settings.encode()).hexdigest()[:12]}"


def pairs_are_trained(setup: PairSetup, seed: int, folder: Path, cache: Path) -> bool:
    """Return whether a case's model and its samples are in the cache."""
    return (pair_home(setup, seed, setup.case(folder, seed), cache) / "samples.npz").exists()


def train_or_load_pairs(
    setup: PairSetup, seed: int, folder: Path, cache: Path, say: Callable[[str], None]
) -> PairTrained:
    """Train the model of a conditional case and draw its samples, or take both from the cache."""
    case = setup.case(folder, seed)
    home = pair_home(setup, seed, case, cache)
    model, lora, path = home / "model", None, home / "samples.npz"
    if setup.base:
        model, lora = train_or_load_pairs(setup.base, seed, folder, cache, say).model, home / WEIGHTS
    if not (lora or model / "model_index.json").exists():
        say(f"training {setup.name}, seed {seed}: {setup.recipe.steps} steps on {len(case.labelled.train)} images")
        torch.manual_seed(seed)
        if lora:
            fine_tune(case, model, home, setup)
        else:
            (train_classes if setup.kind == "class" else train_captions)(case, model, setup)
    if not path.exists():
        say(f"sampling {setup.name}, seed {seed}: under {len(case.conditions)} conditions")
        arrays: dict[str, Any] = {**_samples(load_model(str(model), lora=str(lora) if lora else None), setup, case)}
        np.savez(path, **arrays)
    with np.load(path) as drawn:
        return PairTrained(setup, seed, case, model, **dict(drawn), lora=lora)


def train_classes(case: PairCase, folder: Path, setup: PairSetup) -> None:
    """Train a UNet2DModel under classes, and under one more label for none, and save it as a DDPMPipeline."""
    from diffusers import DDPMPipeline, DDPMScheduler

    states, scheduler = to_tensor(case.labelled.train), DDPMScheduler()
    network = untrained(tuple(states.shape[1:]), setup.recipe.channels, num_class_embeds=CLASSES + 1)
    labels = torch.from_numpy(case.condition[case.labelled.family])

    def predict(x: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        dropped = torch.rand(len(rows)) < setup.dropped
        found: Tensor = network(x, time, class_labels=torch.where(dropped, NO_CLASS, labels[rows])).sample
        return found

    fit(list(network.parameters()), denoising_loss(predict, states, scheduler, setup.recipe.batch), setup.recipe)
    DDPMPipeline(network, scheduler).save_pretrained(folder)


def train_captions(case: PairCase, folder: Path, setup: PairSetup) -> None:
    """Train an autoencoder, and under captions a UNet in its latents; save them as a StableDiffusionPipeline."""
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    captions, where = np.unique(case.condition, return_inverse=True)
    tokenizer = train_tokenizer(captions.tolist())
    encoder = text_encoder(tokenizer)
    embeddings = embed_captions(tokenizer, encoder, [*captions.tolist(), ""])
    vae = train_autoencoder(case.labelled.train, Autoencoder())
    states = encode_images(vae, case.labelled.train)
    scheduler = DDPMScheduler(steps_offset=1, clip_sample=False)  # as StableDiffusionPipeline wants it
    network = untrained_text_network(tuple(states.shape[1:]), setup.recipe.channels)
    caption = torch.from_numpy(where[case.labelled.family])

    def predict(x: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        dropped = torch.rand(len(rows)) < setup.dropped
        found: Tensor = network(x, time, embeddings[torch.where(dropped, len(captions), caption[rows])]).sample
        return found

    fit(list(network.parameters()), denoising_loss(predict, states, scheduler, setup.recipe.batch), setup.recipe)
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=network,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def fine_tune(case: PairCase, base: Path, folder: Path, setup: PairSetup) -> None:
    """Train low-rank weights of the attention of a StableDiffusionPipeline, and save them as diffusers does."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    pipeline = StableDiffusionPipeline.from_pretrained(base)
    captions, where = np.unique(case.condition, return_inverse=True)
    embeddings = embed_captions(pipeline.tokenizer, pipeline.text_encoder, [*captions.tolist(), ""])
    states, network = encode_images(pipeline.vae, case.labelled.train), pipeline.unet.requires_grad_(False)
    network.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    caption = torch.from_numpy(where[case.labelled.family])

    def predict(x: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        found: Tensor = network(x, time, embeddings[caption[rows]]).sample
        return found

    trained = [each for each in network.parameters() if each.requires_grad]
    fit(trained, denoising_loss(predict, states, pipeline.scheduler, setup.recipe.batch), setup.recipe)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(network))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)


def untrained_text_network(shape: tuple[int, ...], channels: tuple[int, ...]) -> Any:
    """Return a UNet2DConditionModel with random weights for states of `shape` (C, H, W)."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=shape[1],
        in_channels=shape[0],
        out_channels=shape[0],
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        norm_num_groups=8,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
    )


def _samples(denoiser: Denoiser, setup: PairSetup, case: PairCase) -> dict[str, np.ndarray]:
    """Return the arrays of `PairTrained`."""
    asked = np.repeat(np.arange(len(case.conditions)), setup.samples)
    each: list[Condition] = [case.conditions[number] for number in asked]
    null = load_null(denoiser, setup.kind)
    return {
        "asked": asked,
        "samples": sample_under(denoiser, each, setup.steps),
        "guided": sample_under(denoiser, each, setup.steps, null, setup.guidance),
        "free": draw_samples(null, range(FREE), FREE_SEED, setup.steps),
    }


def sample_under(
    denoiser: Denoiser,
    conditions: Sequence[Condition],
    steps: int,
    null: Denoiser | None = None,
    guidance: float | None = None,
) -> np.ndarray:
    """Draw one sample under each condition, (conditions, C, H, W) uint8, guided away from `null` if it is given."""
    drawn = []
    for first in range(0, len(conditions), AT_ONCE):
        some = conditions[first : first + AT_ONCE]
        model = guided(denoiser, some, None) if null is None else guide(denoiser, some, null, guidance or 1.0)
        drawn.append(draw_samples(model, range(first, first + len(some)), 0, steps))
    return np.concatenate(drawn)


def guide(denoiser: Denoiser, conditions: Sequence[Condition], null: Denoiser, scale: float) -> Denoiser:
    """Return the model under conditions, one for each image of a batch, guided away from `null`."""
    return GuidedDenoiser(denoiser.given(conditions), null, scale)
