r"""Captions become the embeddings that a network takes, by the text encoders of diffusers' own pipelines.

Padding, the layer that is read and the pooling are rules of each pipeline's `encode_prompt`, so that function runs
here, with the pipeline's text encoders frozen and in the network's precision.

**Batches.** The last digits of an embedding depend on the shape of the batch that it was computed in (in bfloat16 on a
CPU, CLIP gives others to a caption alone than among eight). So all batches have one shape: each caption is padded to
the pipeline's full length, and short batches are filled up. Then the captions beside a caption do not change its
embedding. On a CPU, where a batch gains little, that shape is one caption.

**Overflow.** CLIP reads 77 tokens, T5 as many as the pipeline allows (256 or 512). A word that one encoder cuts off
and another reads is not lost, so the overflow of a caption is the smallest number of tokens that any encoder cuts off.
"""

import inspect
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from volgrowth.errors import ModelError, first_line
from volgrowth.models.checkpoint_files import TRANSFORMERS_WEIGHTS, Component, from_pretrained
from volgrowth.models.pipelines.library_classes import class_of_diffusers
from volgrowth.numerics.denoisers import Condition
from volgrowth.numerics.forward import say_once
from volgrowth.numerics.memory import out_of_memory

ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast")
SLOTS = {
    "StableDiffusionPipeline": ("",),
    "StableDiffusionXLPipeline": ("", "_2"),
    "StableDiffusion3Pipeline": ("", "_2", "_3"),
    "FluxPipeline": ("", "_2"),
}
"""Endings of the names `text_encoder` and `tokenizer` in each pipeline."""
OPTIONAL = {("StableDiffusion3Pipeline", "_3")}
OPTIONS = ("force_zeros_for_empty_prompt",)
"""Settings of model_index.json that change embeddings."""
AT_ONCE = 32
"""Captions in a batch on a GPU."""
KEPT_BYTES = 1 << 28
"""Embeddings that are kept for when their captions come again: some 800 captions of Stable Diffusion XL in bfloat16."""


@dataclass(frozen=True)
class TextEncoders:
    """Text encoders and tokenizers of a pipeline, checked but not loaded.

    Attributes:
        pipeline: class name of the pipeline.
        encoders: class name and files of each text encoder, by its name in model_index.json.
        tokenizers: class name and folder of each tokenizer, by its name in model_index.json.
        options: settings of model_index.json that change embeddings.
    """

    pipeline: str
    encoders: dict[str, tuple[str, Component]]
    tokenizers: dict[str, tuple[str, Path]]
    options: dict[str, Any]

    @classmethod
    def of(cls, folder: Path, index: dict[str, Any]) -> "TextEncoders":
        """Check the text encoders and tokenizers of a pipeline.

        Args:
            folder: the pipeline.
            index: the content of its model_index.json.

        Raises:
            ModelError: a part is missing, is of an unknown class, or is a pickle; or transformers is not installed.
        """
        try:
            import transformers  # noqa: F401
        except ImportError as error:
            raise ModelError(
                f"{folder} holds a model of captions, and transformers cannot be imported ({first_line(error)}): pip "
                f"install 'volgrowth[text]'"
            ) from None
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
        """Weights of the encoders, and the files of the tokenizers."""
        weights = [path for _, encoder in self.encoders.values() for path in encoder.weights]
        folders = [folder for _, folder in self.tokenizers.values()]
        words = [path for folder in folders for end in ("json", "txt", "model") for path in folder.glob(f"*.{end}")]
        return (*weights, *sorted(words))

    @property
    def values(self) -> list[Any]:
        """Settings that change embeddings, for the digest of the model."""
        return [self.pipeline, self.options, *(encoder.config for _, encoder in self.encoders.values())]

    def load(self, network: Any, precision: torch.dtype, device: torch.device) -> Any:
        """Load the pipeline with its text encoders and without its other parts.

        Args:
            network: the loaded network, so that low-rank weights can be added to it through the pipeline.
            precision: precision of the text encoders.
            device: where they are loaded to.

        Raises:
            ModelError: weights or a tokenizer cannot be loaded.
        """
        import transformers

        parts: dict[str, Any] = {"unet": network, "transformer": network, "requires_safety_checker": False}
        with quiet():
            for name, (kind, encoder) in self.encoders.items():
                # transformers keeps in float32 what needs its range, such as T5's last projections
                encoder_class = getattr(transformers, kind)
                module = from_pretrained(encoder_class, encoder, "text encoder", leftovers=True, dtype=precision)
                parts[name] = module.to(device)
            for name, (kind, folder) in self.tokenizers.items():
                parts[name] = _load_tokenizer(kind, folder)
            for (name, (_, encoder)), tokenizer in zip(self.encoders.items(), self.tokenizers, strict=True):
                _check_length(encoder, parts[name].config, parts[tokenizer])
            pipeline = class_of_diffusers(self.pipeline)
            known = inspect.signature(pipeline.__init__).parameters
            needed = [name for name, value in known.items() if value.default is value.empty and name != "self"]
            given = {name: value for name, value in {**parts, **self.options}.items() if name in known}
            return pipeline(**{**dict.fromkeys(needed), **given})


class TextConditioner:
    """Captions as embeddings. A caption that comes again soon is not computed again: see `KEPT_BYTES`.

    Args:
        embed: function from captions, or None for the null condition, to the network's keyword arguments, each
            (captions, ...), or (1, ...) for the null condition.
        readers: tokenizer of each text encoder and how many tokens that encoder reads, begin and end included.
        at_once: how many captions each call of `embed` gets; the last one is repeated where there are fewer. It is
            halved for good when memory runs out.
    """

    kind = "caption"
    null = True

    def __init__(
        self,
        embed: Callable[[Sequence[str] | None], dict[str, Tensor]],
        readers: Sequence[tuple[Any, int]],
        at_once: int = 1,
    ):
        self._embed, self.readers, self.at_once = embed, readers, at_once
        self._kept: dict[str | None, dict[str, Tensor]] = {}  # the caption that was used last stands last

    def __call__(self, values: Sequence[Condition]) -> dict[str, Tensor]:
        if problem := next(filter(None, map(self.problem, values)), None):
            raise ModelError(problem)
        captions = [None if value is None else str(value) for value in values]
        found = self._embeddings(dict.fromkeys(captions))
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

    def _embeddings(self, captions: Collection[str | None]) -> dict[str | None, dict[str, Tensor]]:
        """Return the embeddings of distinct captions, (1, ...) each, computing those that are not kept."""
        found = {caption: self._kept.pop(caption) for caption in captions if caption in self._kept}
        found |= self._encoded([caption for caption in captions if caption is not None and caption not in found])
        self._kept |= {caption: found[caption] for caption in captions if caption is not None}
        each = sum(tensor.numel() * tensor.element_size() for tensor in self._nothing.values())
        for caption in list(self._kept)[: max(0, len(self._kept) - KEPT_BYTES // each)]:
            del self._kept[caption]
        return {None: self._nothing, **found}

    def _encoded(self, captions: Sequence[str]) -> dict[str | None, dict[str, Tensor]]:
        """Compute the embeddings of captions in batches of one shape."""
        found: dict[str | None, dict[str, Tensor]] = {}
        with torch.no_grad(), quiet():
            while len(found) < len(captions):
                some = captions[len(found) : len(found) + self.at_once]
                batch = self._attempt([*some, *[some[-1]] * (self.at_once - len(some))])
                if batch is None:
                    self.at_once //= 2
                    say_once(f"text encoders ran out of memory: they get {self.at_once} captions at a time from now on")
                    continue
                for index, caption in enumerate(some):
                    # copies, since a part of a batch would keep the whole batch in memory
                    found[caption] = {name: tensor[index : index + 1].clone() for name, tensor in batch.items()}
        return found

    def _attempt(self, captions: Sequence[str]) -> dict[str, Tensor] | None:
        try:
            return self._embed(captions)
        except (RuntimeError, MemoryError) as error:
            if len(captions) <= 1 or not out_of_memory(error):
                raise
        return None  # leaves the block before anything is tried again: the traceback holds the tensors


def readers(pipeline: Any, t5_tokens: int | None = None) -> list[tuple[Any, int]]:
    """Return the tokenizer of each text encoder, with the number of tokens that `encode_prompt` gives to the encoder.

    Args:
        pipeline: a loaded diffusers pipeline.
        t5_tokens: tokens of T5; by default those of the pipeline's `encode_prompt`.
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
    """Silence warnings and progress bars of diffusers and transformers; what they warn of is checked elsewhere."""
    bars = False
    with suppress(ImportError):  # models without captions do without transformers
        from transformers.utils import logging as of_transformers

        bars = of_transformers.is_progress_bar_enabled()
        of_transformers.disable_progress_bar()
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            of_transformers.enable_progress_bar()


def _part(folder: Path, index: dict[str, Any], name: str, known: tuple[str, ...]) -> tuple[str, Path]:
    """Return class name and folder of a pipeline's part."""
    if name not in index or not (folder / name).is_dir():
        raise ModelError(
            f"{folder} has no {name}: expected all text encoders and tokenizers of a {index['_class_name']}; save the "
            f"pipeline again with all its components"
        )
    kind = index[name][1]
    if kind not in known:
        raise ModelError(f"{folder / name} is a {kind}: expected one of {', '.join(known)}")
    return kind, folder / name


def _load_tokenizer(kind: str, folder: Path) -> Any:
    """Load a tokenizer from its JSON, text and model files."""
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # json, tokenizers and transformers each raise their own kinds
        raise ModelError(
            f"the tokenizer in {folder} cannot be loaded ({first_line(error)}): download it again, or save it with a "
            f"tokenizer.json"
        ) from None


def _is_t5(config: Any) -> bool:
    return bool(config.model_type == "t5")


def _check_length(encoder: Component, config: Any, tokenizer: Any) -> None:
    """Check that CLIP's table of positions is as long as the tokenizer's output, which pipelines pad to."""
    if _is_t5(config) or tokenizer.model_max_length <= config.max_position_embeddings:
        return
    raise ModelError(
        f"the tokenizer beside {encoder.folder} gives {tokenizer.model_max_length} tokens, and the encoder reads "
        f"{config.max_position_embeddings}: set model_max_length in its tokenizer_config.json"
    )
