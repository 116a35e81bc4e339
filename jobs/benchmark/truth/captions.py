"""Captions of emoji, and a small text encoder for them, made from nothing but the captions."""

import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# tokens that the encoder reads, begin and end included, and the width of its embeddings
TOKENS, WIDTH = 16, 64
_CODE = re.compile(r"u(?:ni)?([0-9A-F]{4,6})")


def caption_of(glyph: str) -> str | None:
    """Return the Unicode name of a glyph named by its code point, in small letters; None for any other glyph."""
    code = _CODE.fullmatch(glyph)
    name = unicodedata.name(chr(int(code[1], 16)), None) if code else None
    return name.lower() if name else None


def captioned(images: np.ndarray, glyphs: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the images whose glyph has a caption, and their captions."""
    captions = [caption_of(str(glyph)) for glyph in glyphs]
    known = [row for row, caption in enumerate(captions) if caption]
    return images[known], np.array([captions[row] for row in known])


def train_tokenizer(captions: Sequence[str]) -> Any:
    """Return a CLIPTokenizer whose tokens are the words, and the parts of words, that come most often in captions."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    ends = ("<|startoftext|>", "<|endoftext|>")
    words = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(
        captions, trainers.BpeTrainer(vocab_size=1500, end_of_word_suffix="</w>", show_progress=False)
    )
    model = json.loads(words.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    found = {**model["vocab"]}
    for token in (*(f"{letter}</w>" for letter in sorted(set("".join(captions)) - {" "})), *ends):
        found.setdefault(token, len(found))
    return CLIPTokenizer(vocab=found, merges=merges, model_max_length=TOKENS)


def text_encoder(tokenizer: Any) -> Any:
    """Return a CLIPTextModel with random weights, which stay as they are: it tells words and their order apart."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_factor=5.0,
    )
    return CLIPTextModel(config).eval().requires_grad_(False)


@torch.no_grad()
def embed_captions(tokenizer: Any, encoder: Any, captions: Sequence[str]) -> Tensor:
    """Return the embeddings (captions, TOKENS, WIDTH) as StableDiffusionPipeline makes them; '' is no caption."""
    tokens = tokenizer(
        list(captions), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    found: Tensor = encoder(tokens)[0]
    return found
