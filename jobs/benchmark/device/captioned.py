"""A whole audit of photographs with captions by a model of Stable Diffusion 1.5's size, whose weights are random."""

import string
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from jobs.benchmark.cost.networks import stable_diffusion
from jobs.benchmark.device.audits import NEEDED, audit_files
from jobs.benchmark.device.decoding import picture
from jobs.benchmark.device.rig import Result, Rig

ROWS, BATCH = 1_500, 32
TOKENS = 77
PRESETS = ("standard", "screen")


def check_captioned(rig: Rig) -> Iterator[Result]:
    """Audit JPEG files of 512 x 512 pixels with captions: decoding, text encoder, autoencoder and network together."""
    rows, size = (16, 16) if rig.quick else (ROWS, 512)
    _write_model(rig)
    _write_rows(rig, rows, size)
    for preset in PRESETS[: 1 if rig.quick else None]:
        names: Result = {"preset": preset, "batch": BATCH, "rows": rows}
        if rig.late(NEEDED):
            yield {**names, "skipped": "no time left"}
            continue
        settings = ("channels_last=true", f"batch_size={4 if rig.quick else BATCH}")
        yield {**names, **audit_files(rig, "captioned", "captioned.parquet", rows, preset, settings, 1, 256)}


def _write_model(rig: Rig) -> None:
    """Save a pipeline in bfloat16, as large as Stable Diffusion 1.5 or, for a quick check, as small as can be."""
    import diffusers
    import transformers

    special = ("<|startoftext|>", "<|endoftext|>")
    letters = string.ascii_lowercase
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), *special]
    ids = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = transformers.CLIPTokenizer(vocab=ids, merges=[], model_max_length=TOKENS)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes: Any = (8, 16, 1, 1) if rig.quick else (768, 3072, 12, 12)
    given: dict[str, Any] = dict(zip(names, sizes, strict=True))
    text = transformers.CLIPTextConfig(
        **given,
        vocab_size=len(tokenizer),
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    channels = (8, 8, 8, 8) if rig.quick else (128, 256, 512, 512)
    torch.manual_seed(0)
    with torch.device(rig.device):
        network = stable_diffusion() if not rig.quick else _small_network(diffusers)
        vae = diffusers.AutoencoderKL(
            block_out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1 if rig.quick else 2,
            latent_channels=4,
            norm_num_groups=4 if rig.quick else 32,
            sample_size=16 if rig.quick else 512,
        )
        encoder = transformers.CLIPTextModel(text)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=network,
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.bfloat16).save_pretrained(rig.folder / "captioned")


def _small_network(diffusers: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=2,
        layers_per_block=1,
        block_out_channels=(8, 8),
        attention_head_dim=2,
        cross_attention_dim=8,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


def _write_rows(rig: Rig, rows: int, size: int) -> None:
    """Write pictures that differ, each with its own caption."""
    with ThreadPoolExecutor() as crew:
        files = list(crew.map(partial(picture, size, "JPEG"), range(rows)))
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list(string.ascii_lowercase), 5)) for _ in range(4 * rows)]
    captions = [" ".join(words[4 * row : 4 * row + 4]) for row in range(rows)]
    table = pa.table({"image": [{"bytes": file, "path": None} for file in files], "caption": captions})
    pq.write_table(table, rig.folder / "captioned.parquet", row_group_size=64)
