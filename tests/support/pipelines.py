"""Tiny pipelines of every family with random weights, as `save_pretrained` writes them.

Images are 16 x 16, latents 8 x 8 behind autoencoders that halve. Captions are read letter by letter, by CLIP up to 12
tokens with begin and end, by T5 as far as the pipelines let it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tests.support.checkpoints import unet

FAMILY_NAMES = ("ddpm", "ddim", "score-sde-ve", "ldm", "dit", "sd1", "sd2", "sdxl", "sd3", "flux")
TEXT_FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux")
CLASSES = 10
CLIP_TOKENS = 12
FLUX_RESOLUTION = 16
"""Flux networks know no size: this one was made for these images."""

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LATENTS, SIZE = 4, 8
WIDTH = 8
"""Of text embeddings."""


def build(family: str, folder: Path, *, scheduler: Any = None, t5: bool = True, **network: Any) -> Any:
    """Save a pipeline and return it.

    Args:
        family: one of `FAMILY_NAMES`.
        folder: to save to.
        scheduler: instead of the family's usual one.
        t5: whether SD3 has its third text encoder.
        network: changes to the configuration of the network.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {"t5": t5} if family == "sd3" else {}
        pipeline = BUILDERS[family](scheduler, **options, **network)
    pipeline.save_pretrained(folder)
    return pipeline


def unet2d(**changes: Any) -> Any:
    return unet(**{"in_channels": 3, "out_channels": 3, **changes})


def unet_with_text(**changes: Any) -> Any:
    config: dict[str, Any] = {
        "sample_size": SIZE,
        "in_channels": LATENTS,
        "out_channels": LATENTS,
        "layers_per_block": 1,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": WIDTH,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return diffusers.UNet2DConditionModel(**{**config, **changes})


def autoencoder(**changes: Any) -> Any:
    """Halves height and width."""
    config: dict[str, Any] = {
        "block_out_channels": (4, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": LATENTS,
        "norm_num_groups": 4,
        "sample_size": 2 * SIZE,
    }
    return diffusers.AutoencoderKL(**{**config, **changes})


def quantiser(**changes: Any) -> Any:
    config: dict[str, Any] = {
        "block_out_channels": (4, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 3,
        "num_vq_embeddings": 16,
        "norm_num_groups": 4,
        "sample_size": 2 * SIZE,
    }
    return diffusers.VQModel(**{**config, **changes})


def clip_tokenizer() -> Any:
    """Letters, alone and at the end of a word; no merges."""
    special = ("<|startoftext|>", "<|endoftext|>")
    vocabulary = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), *special]
    ids = {token: number for number, token in enumerate(vocabulary)}
    return transformers.CLIPTokenizer(vocab=ids, merges=[], model_max_length=CLIP_TOKENS)


def clip(projected: bool) -> Any:
    tokenizer = clip_tokenizer()
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


def t5_tokenizer() -> Any:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), *((letter, -2.0) for letter in LETTERS)]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0)


def t5_encoder(width: int) -> Any:
    config = transformers.T5Config(
        vocab_size=len(t5_tokenizer()), d_model=width, d_kv=4, d_ff=2 * WIDTH, num_layers=1, num_heads=2
    )
    return transformers.T5EncoderModel(config)


def _pixels(pipeline: Any, usual: Any) -> Callable[..., Any]:
    return lambda scheduler, **network: pipeline(unet2d(**network), scheduler or usual())


def _score_sde_ve(scheduler: Any, **network: Any) -> Any:
    """Fourier features of the noise level and images in [0, 1], as google/ncsnpp-* have them."""
    config = {"time_embedding_type": "fourier", "center_input_sample": True, **network}
    return diffusers.ScoreSdeVePipeline(unet2d(**config), scheduler or diffusers.ScoreSdeVeScheduler())


def _ldm(scheduler: Any, **network: Any) -> Any:
    return diffusers.LDMPipeline(quantiser(), unet2d(**network), scheduler or scaled_linear())


def _dit(scheduler: Any, **network: Any) -> Any:
    config: dict[str, Any] = {
        "sample_size": SIZE,
        "in_channels": LATENTS,
        "out_channels": 2 * LATENTS,
        "num_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 4,
        "patch_size": 2,
        "num_embeds_ada_norm": CLASSES,
    }
    transformer = diffusers.DiTTransformer2DModel(**{**config, **network})
    return diffusers.DiTPipeline(transformer, autoencoder(), scheduler or diffusers.DDIMScheduler())


def scaled_linear(**options: Any) -> Any:
    """As Stable Diffusion is trained and sampled."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, **betas, **options)


def _sd1(scheduler: Any, **network: Any) -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=clip(projected=False),
        tokenizer=clip_tokenizer(),
        unet=unet_with_text(**network),
        scheduler=scheduler or scaled_linear(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sd2(scheduler: Any, **network: Any) -> Any:
    config = {"use_linear_projection": True, **network}
    return _sd1(scheduler or scaled_linear(prediction_type="v_prediction"), **config)


def _sdxl(scheduler: Any, **network: Any) -> Any:
    config: dict[str, Any] = {
        "cross_attention_dim": 2 * WIDTH,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": WIDTH + 6 * 4,
        "use_linear_projection": True,
    }
    return diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13025),
        text_encoder=clip(projected=False),
        text_encoder_2=clip(projected=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet_with_text(**{**config, **network}),
        scheduler=scheduler or scaled_linear(),
    )


def _sd3(scheduler: Any, t5: bool = True, **network: Any) -> Any:
    config: dict[str, Any] = {
        "sample_size": SIZE,
        "patch_size": 2,
        "in_channels": LATENTS,
        "out_channels": LATENTS,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 4,
        "joint_attention_dim": 3 * WIDTH,
        "caption_projection_dim": 8,
        "pooled_projection_dim": 2 * WIDTH,
        "pos_embed_max_size": SIZE,
    }
    return diffusers.StableDiffusion3Pipeline(
        vae=autoencoder(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip(projected=True),
        text_encoder_2=clip(projected=True),
        text_encoder_3=t5_encoder(3 * WIDTH) if t5 else None,
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=t5_tokenizer() if t5 else None,
        transformer=diffusers.SD3Transformer2DModel(**{**config, **network}),
        scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _flux(scheduler: Any, **network: Any) -> Any:
    config: dict[str, Any] = {
        "in_channels": 4 * LATENTS,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "axes_dims_rope": (2, 2, 4),
        "joint_attention_dim": WIDTH,
        "pooled_projection_dim": WIDTH,
        "guidance_embeds": True,
    }
    return diffusers.FluxPipeline(
        vae=autoencoder(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(projected=False),
        text_encoder_2=t5_encoder(WIDTH),
        tokenizer=clip_tokenizer(),
        tokenizer_2=t5_tokenizer(),
        transformer=diffusers.FluxTransformer2DModel(**{**config, **network}),
        scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )


BUILDERS: dict[str, Callable[..., Any]] = {
    "ddpm": _pixels(diffusers.DDPMPipeline, diffusers.DDPMScheduler),
    "ddim": _pixels(diffusers.DDIMPipeline, diffusers.DDIMScheduler),
    "score-sde-ve": _score_sde_ve,
    "ldm": _ldm,
    "dit": _dit,
    "sd1": _sd1,
    "sd2": _sd2,
    "sdxl": _sdxl,
    "sd3": _sd3,
    "flux": _flux,
}
