r"""Captions to what a network sees of them, by the text encoding of diffusers' own pipelines.

How tokens are padded, which layer is read and what is pooled are rules of each pipeline's `encode_prompt`, so that is
what runs here, with the pipeline's text encoders frozen and in the network's precision. Of a caption only the
embeddings stay. Each is encoded alone, so that its embeddings do not depend, not even in the last digit, on which
others are in the batch.

**Overflow.** CLIP reads 77 tokens, T5 as many as the pipeline lets it (256 or 512). What one encoder cuts and another
reads is not lost, so a caption's overflow is the least that any of them cuts, in its own tokens.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from volgrowth.errors import ModelError
from volgrowth.models.checkpoint_files import TRANSFORMERS_WEIGHTS, Component, unreadable, variant_of
from volgrowth.numerics.denoisers import Condition

ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast")
SLOTS = {
    "StableDiffusionPipeline": ("",),
    "StableDiffusionXLPipeline": ("", "_2"),
    "StableDiffusion3Pipeline": ("", "_2", "_3"),
    "FluxPipeline": ("", "_2"),
}
"""Of each pipeline, the endings of its `text_encoder` and `tokenizer`."""
OPTIONAL = {("StableDiffusion3Pipeline", "_3")}
OPTIONS = ("force_zeros_for_empty_prompt",)
"""ModelOptions of a model_index.json that decide what an embedding is."""


@dataclass(frozen=True)
class TextEncoders:
    """Of a pipeline, all that reads captions, checked but not loaded.

    Attributes:
        pipeline: class of the pipeline.
        encoders: of each `text_encoder`, class and files.
        tokenizers: of each `tokenizer`, class and folder.
        options: settings of the pipeline.
    """

    pipeline: str
    encoders: dict[str, tuple[str, Component]]
    tokenizers: dict[str, tuple[str, Path]]
    options: dict[str, Any]

    @classmethod
    def of(cls, folder: Path, index: dict[str, Any]) -> "TextEncoders":
        """Of a pipeline folder and its model_index.json.

        Raises:
            ModelError: one is missing, of a class that is not known, or a pickle.
        """
        name = index["_class_name"]
        encoders: dict[str, tuple[str, Component]] = {}
        tokenizers: dict[str, tuple[str, Path]] = {}
        for ending in SLOTS[name]:
            encoder, tokenizer = f"text_encoder{ending}", f"tokenizer{ending}"
            if (name, ending) in OPTIONAL and encoder not in index:
                continue
            kind, place = _part(folder, index, encoder, ENCODERS)
            encoders[encoder] = kind, Component.of(place, TRANSFORMERS_WEIGHTS)
            tokenizers[tokenizer] = _part(folder, index, tokenizer, TOKENIZERS)
        return cls(name, encoders, tokenizers, {key: index[key] for key in OPTIONS if key in index})

    @property
    def files(self) -> tuple[Path, ...]:
        """Weights, and all that a tokenizer is made of."""
        weights = [path for _, encoder in self.encoders.values() for path in encoder.weights]
        folders = [folder for _, folder in self.tokenizers.values()]
        words = [path for folder in folders for end in ("json", "txt", "model") for path in folder.glob(f"*.{end}")]
        return (*weights, *sorted(words))

    @property
    def values(self) -> list[Any]:
        """What decides the embeddings beside those files."""
        return [self.pipeline, self.options, *(encoder.config for _, encoder in self.encoders.values())]

    def load(self, network: Any, precision: torch.dtype, device: torch.device) -> Any:
        """The pipeline with its text encoders and this network, and without all else.

        Raises:
            ModelError: weights or a tokenizer cannot be loaded.
        """
        import diffusers

        parts: dict[str, Any] = {"unet": network, "transformer": network, "requires_safety_checker": False}
        with quiet():
            for name, (kind, encoder) in self.encoders.items():
                parts[name] = _load_encoder(kind, encoder, precision).to(device)
            for name, (kind, folder) in self.tokenizers.items():
                parts[name] = _load_tokenizer(kind, folder)
            for (name, (_, encoder)), tokenizer in zip(self.encoders.items(), self.tokenizers, strict=True):
                _check_length(encoder, parts[name].config, parts[tokenizer])
            pipeline = getattr(diffusers, self.pipeline)
            known = inspect.signature(pipeline.__init__).parameters
            needed = [name for name, value in known.items() if value.default is value.empty and name != "self"]
            given = {name: value for name, value in {**parts, **self.options}.items() if name in known}
            return pipeline(**{**dict.fromkeys(needed), **given})


class TextConditioner:
    """Captions as the embeddings that a network is shown.

    Args:
        embed: of one caption, or None for the null condition, the keyword arguments of the network, each (1, ...).
        readers: of each text encoder, its tokenizer and how many tokens it reads, begin and end included.
    """

    kind = "caption"
    null = True

    def __init__(self, embed: Callable[[str | None], dict[str, Tensor]], readers: Sequence[tuple[Any, int]]):
        self._embed, self.readers = embed, readers

    def __call__(self, values: Sequence[Condition]) -> dict[str, Tensor]:
        if problem := next(filter(None, map(self.problem, values)), None):
            raise ModelError(problem)
        captions = [None if value is None else str(value) for value in values]
        found = {caption: self._embedding(caption) for caption in dict.fromkeys(captions)}
        return {
            name: torch.cat([found[caption][name] for caption in captions]) if captions else tensor[:0]
            for name, tensor in self._nothing.items()
        }

    def problem(self, value: Condition) -> str | None:
        if value is None or isinstance(value, str):
            return None
        return f"caption {value!r} is no text: expected a string, or nothing for an image without a caption"

    def overflow(self, values: Sequence[Condition]) -> list[int]:
        with quiet():
            return [self._cut(value) for value in values]

    def _cut(self, caption: Condition) -> int:
        if caption is None:
            return 0
        return min(max(0, len(tokenizer(caption).input_ids) - limit) for tokenizer, limit in self.readers)

    @cached_property
    def _nothing(self) -> dict[str, Tensor]:
        with torch.no_grad(), quiet():
            return self._embed(None)

    def _embedding(self, caption: str | None) -> dict[str, Tensor]:
        if caption is None:
            return self._nothing
        with torch.no_grad(), quiet():
            return self._embed(caption)


def readers(pipeline: Any, t5_tokens: int | None = None) -> list[tuple[Any, int]]:
    """Of each text encoder of a pipeline, its tokenizer and how many tokens `encode_prompt` gives it.

    Args:
        t5_tokens: of T5; the default of the pipeline's `encode_prompt` otherwise.
    """
    longest = inspect.signature(pipeline.encode_prompt).parameters.get("max_sequence_length")
    found: list[tuple[Any, int]] = []
    for ending in SLOTS[type(pipeline).__name__]:
        tokenizer, encoder = getattr(pipeline, f"tokenizer{ending}"), getattr(pipeline, f"text_encoder{ending}")
        if encoder is None:
            continue
        limit = tokenizer.model_max_length
        if longest is not None and _is_t5(encoder.config):
            limit = t5_tokens or longest.default
        found.append((tokenizer, limit))
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and bars of diffusers and transformers: what they warn of is checked or reported here."""
    from transformers.utils import logging as of_transformers

    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels, bars = [logger.level for logger in loggers], of_transformers.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    of_transformers.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            of_transformers.enable_progress_bar()


def _part(folder: Path, index: dict[str, Any], name: str, known: tuple[str, ...]) -> tuple[str, Path]:
    """Class and folder of a component."""
    if name not in index or not (folder / name).is_dir():
        raise ModelError(
            f"{folder} has no {name}: expected all text encoders and tokenizers of a {index['_class_name']}; save the "
            f"pipeline again with all its components"
        )
    kind = index[name][1]
    if kind not in known:
        raise ModelError(f"{folder / name} is a {kind}: expected one of {', '.join(known)}")
    return kind, folder / name


def _load_encoder(kind: str, encoder: Component, precision: torch.dtype) -> Any:
    """A text encoder, frozen; what transformers keeps in float32 for its range (T5's last projections) stays so."""
    import transformers

    try:
        module, loading = getattr(transformers, kind).from_pretrained(
            encoder.folder,
            variant=variant_of(encoder),
            dtype=precision,
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
        )
    except Exception as error:  # safetensors, torch and transformers each raise their own kinds
        raise unreadable(encoder.folder, error) from None
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            f"the weights in {encoder.folder} lack {len(missing)} tensors of the text encoder, {missing[0]} among "
            f"them: they belong to another config.json"
        )
    return module.eval().requires_grad_(False)


def _load_tokenizer(kind: str, folder: Path) -> Any:
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # json, tokenizers and transformers each raise their own kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0].strip(" .")
        raise ModelError(
            f"the tokenizer in {folder} cannot be loaded ({reason}): download it again, or save it with a "
            f"tokenizer.json"
        ) from None


def _is_t5(config: Any) -> bool:
    return bool(config.model_type == "t5")


def _check_length(encoder: Component, config: Any, tokenizer: Any) -> None:
    """CLIP looks positions up in a table, and pipelines pad to what the tokenizer says."""
    if _is_t5(config) or tokenizer.model_max_length <= config.max_position_embeddings:
        return
    raise ModelError(
        f"the tokenizer beside {encoder.folder} gives {tokenizer.model_max_length} tokens, and the encoder reads "
        f"{config.max_position_embeddings}: set model_max_length in its tokenizer_config.json"
    )
