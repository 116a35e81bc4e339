"""Network classes of diffusers that volgrowth can measure, and how each is called.

A `NetworkFamily` stands for one network class. It checks a configuration before weights are loaded, and wraps the
loaded network as a function (x, labels, **condition) -> output, so that no other module depends on the network's class.
In every method `config` is the content of the network's config.json.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from volgrowth.errors import ModelError
from volgrowth.models.checkpoint_files import Component

Forward = Callable[..., Tensor]
Embeddings = dict[str, Tensor]


class NetworkFamily(ABC):
    """One network class of diffusers.

    Attributes:
        name: the name of the class in diffusers.
        in_channels: default when the configuration omits the key.
        convolutional: True if convolutions are most of the network's work.
    """

    name: str
    in_channels: int
    convolutional = False

    @abstractmethod
    def check(self, network: Component) -> None:
        """Raise ModelError if this network takes inputs that volgrowth does not give it."""

    def forward(self, network: torch.nn.Module, config: dict[str, Any]) -> Forward:
        """Return the network as a function (x, labels, **condition) -> output of x's shape."""
        channels = config["in_channels"]

        def forward(x: Tensor, labels: Tensor, **condition: Tensor) -> Tensor:
            # networks that also predict a variance put it in channels of its own
            return network(x, timestep=labels, return_dict=False, **condition)[0][:, :channels]

        return forward

    def num_classes(self, config: dict[str, Any]) -> int:
        """Return how many classes the network is conditioned on, 0 if it takes no class."""
        return 0

    def null_class(self, config: dict[str, Any]) -> int | None:
        """Return the label that stands for no class, or None if the network was not trained with one."""
        return None

    def condition(self, config: dict[str, Any]) -> str | None:
        """Return the kind of condition that the network takes: `class`, `caption`, or None for none."""
        return "class" if self.num_classes(config) else None

    def has_null(self, config: dict[str, Any]) -> bool:
        """Return True if the model supports input without a condition."""
        return not self.num_classes(config) or self.null_class(config) is not None

    def whole_labels(self, config: dict[str, Any]) -> bool:
        """Return True if the network looks time labels up in a table, so that they must be whole numbers."""
        return False

    def unit_range(self, config: dict[str, Any]) -> bool:
        """Return True if the network was trained on images in [0, 1] instead of [-1, 1]."""
        return False

    def patch(self, config: dict[str, Any]) -> int:
        """Return the side of the square of state entries that is one token to the network."""
        return 1

    def state_channels(self, config: dict[str, Any]) -> int:
        """Return the number of channels of a state."""
        return int(config["in_channels"])


class UNet2D(NetworkFamily):
    """UNet2DModel: DDPM, DDIM, score SDE and latent diffusion; unconditional, or conditioned on classes."""

    name = "UNet2DModel"
    in_channels = 3
    convolutional = True

    def check(self, network: Component) -> None:
        config, path = network.config, network.folder / "config.json"
        if config.get("class_embed_type") is not None:
            raise ModelError(
                f"{path} sets class_embed_type to {config['class_embed_type']!r}: expected none, or num_class_embeds "
                f"alone; wrap this network with factory:module:function"
            )

    def num_classes(self, config: dict[str, Any]) -> int:
        return config.get("num_class_embeds") or 0

    def whole_labels(self, config: dict[str, Any]) -> bool:
        return config.get("time_embedding_type") == "learned"

    def unit_range(self, config: dict[str, Any]) -> bool:
        return bool(config.get("center_input_sample"))


class DiT(NetworkFamily):
    """DiTTransformer2DModel: conditioned on classes; the label after the last means no class (arXiv 2212.09748)."""

    name = "DiTTransformer2DModel"
    in_channels = 4

    def check(self, network: Component) -> None:
        if not network.config.get("num_embeds_ada_norm"):
            raise ModelError(
                f"{network.folder / 'config.json'} has no num_embeds_ada_norm: expected the number of classes"
            )

    def num_classes(self, config: dict[str, Any]) -> int:
        return int(config["num_embeds_ada_norm"])

    def null_class(self, config: dict[str, Any]) -> int | None:
        return self.num_classes(config)

    def patch(self, config: dict[str, Any]) -> int:
        return int(config.get("patch_size", 2))


class TextFamily(NetworkFamily):
    """Networks conditioned on captions, which a diffusers pipeline turns into embeddings.

    The null condition is the input that this pipeline's classifier-free guidance uses when no negative prompt is given.
    """

    @abstractmethod
    def pipeline(self, config: dict[str, Any]) -> str:
        """Return the class name of the pipeline that turns captions into embeddings for this network."""

    @abstractmethod
    def embed(
        self,
        pipeline: Any,
        captions: Sequence[str] | None,
        config: dict[str, Any],
        pixels: tuple[int, int],
        device: torch.device,
    ) -> Embeddings:
        """Return the keyword arguments of the wrapped network for some captions.

        Args:
            pipeline: the loaded pipeline, an instance of the class that `pipeline(config)` names.
            captions: the texts; None for the null condition.
            config: the network's configuration.
            pixels: (height, width) of the model's images.
            device: the network's device.

        Returns:
            Tensors by argument name, each of shape (captions, ...), or (1, ...) for the null condition.
        """

    def embedding_width(self, network: Any) -> int:
        """Return how many numbers per token the loaded network expects."""
        return int(network.config.joint_attention_dim)

    def t5_tokens(self, config: dict[str, Any]) -> int | None:
        """Return how many tokens T5 reads, or None for the pipeline's default."""
        return None

    def condition(self, config: dict[str, Any]) -> str | None:
        return "caption"

    def check(self, network: Component) -> None:
        config, path = network.config, network.folder / "config.json"
        channels, outputs = config["in_channels"], config.get("out_channels") or config["in_channels"]
        if outputs < channels:
            raise ModelError(
                f"{path} has in_channels {channels} and out_channels {outputs}: expected a network that is shown "
                f"noisy latents alone, and no mask, depth or image beside them; wrap others with "
                f"factory:module:function"
            )


class UNet2DCondition(TextFamily):
    """UNet2DConditionModel: Stable Diffusion 1, 2 and XL (arXiv 2112.10752, 2307.01952).

    Stable Diffusion XL also takes the original size and the crop of an image. It is told the size of the model's images
    and no crop, as its pipeline does by default. Its null condition is zeros if model_index.json sets
    `force_zeros_for_empty_prompt`, which differs from the embedding of the caption ''.
    """

    name = "UNet2DConditionModel"
    in_channels = 4
    convolutional = True
    UNSUPPORTED = (
        *("class_embed_type", "num_class_embeds", "encoder_hid_dim", "encoder_hid_dim_type", "time_cond_proj_dim"),
        "center_input_sample",
    )
    """Settings of networks that take further inputs beside a caption, or images in another range."""

    def check(self, network: Component) -> None:
        super().check(network)
        config, path = network.config, network.folder / "config.json"
        if found := next((key for key in self.UNSUPPORTED if config.get(key)), None):
            raise ModelError(
                f"{path} sets {found} to {config[found]!r}: expected a network that is shown latents and captions "
                f"alone; wrap this network with factory:module:function"
            )
        if config.get("addition_embed_type") not in (None, "text_time"):
            raise ModelError(
                f"{path} has addition_embed_type {config['addition_embed_type']!r}: expected none, or text_time as "
                f"Stable Diffusion XL has it; wrap this network with factory:module:function"
            )

    def embedding_width(self, network: Any) -> int:
        of_blocks = network.config.cross_attention_dim
        return int(of_blocks if isinstance(of_blocks, int) else of_blocks[0])

    def pipeline(self, config: dict[str, Any]) -> str:
        return "StableDiffusionXLPipeline" if config.get("addition_embed_type") else "StableDiffusionPipeline"

    def forward(self, network: torch.nn.Module, config: dict[str, Any]) -> Forward:
        def forward(x: Tensor, labels: Tensor, encoder_hidden_states: Tensor, **added: Tensor) -> Tensor:
            return network(x, labels, encoder_hidden_states, added_cond_kwargs=added or None, return_dict=False)[0]

        return forward

    def embed(
        self,
        pipeline: Any,
        captions: Sequence[str] | None,
        config: dict[str, Any],
        pixels: tuple[int, int],
        device: torch.device,
    ) -> Embeddings:
        prompt, guided = _prompt(captions), captions is None
        found = pipeline.encode_prompt(
            prompt=prompt, device=device, num_images_per_prompt=1, do_classifier_free_guidance=guided
        )
        embeddings = {"encoder_hidden_states": found[1] if guided else found[0]}
        if config.get("addition_embed_type"):
            pooled = found[3] if guided else found[2]
            embeddings["text_embeds"] = pooled
            embeddings["time_ids"] = torch.tensor([[*pixels, 0, 0, *pixels]]).to(pooled).expand(len(prompt), -1)
        return embeddings


class SD3(TextFamily):
    """SD3Transformer2DModel: Stable Diffusion 3 and 3.5, flow matching (arXiv 2403.03206)."""

    name = "SD3Transformer2DModel"
    in_channels = 16

    def pipeline(self, config: dict[str, Any]) -> str:
        return "StableDiffusion3Pipeline"

    def embed(
        self,
        pipeline: Any,
        captions: Sequence[str] | None,
        config: dict[str, Any],
        pixels: tuple[int, int],
        device: torch.device,
    ) -> Embeddings:
        prompt, guided = _prompt(captions), captions is None
        found = pipeline.encode_prompt(prompt, None, None, device=device, do_classifier_free_guidance=guided)
        embeddings, pooled = (found[1], found[3]) if guided else (found[0], found[2])
        return {"encoder_hidden_states": embeddings, "pooled_projections": pooled}

    def patch(self, config: dict[str, Any]) -> int:
        return int(config.get("patch_size", 2))


class Flux(TextFamily):
    """FluxTransformer2DModel: flow matching, on latents packed 2 x 2 into tokens.

    The state keeps its height and width; only the wrapped function packs it into tokens. Networks with
    `guidance_embeds` were distilled to answer as if guided with a scale that they are told. Here they are told 1, the
    scale at which guidance changes nothing and the value that diffusers' training examples set; the pipeline samples
    with 3.5. The null condition is the prompt '', which the pipeline uses for `true_cfg_scale`; a distilled network was
    not trained to know it, so differences to it say less. Networks without `guidance_embeds` (schnell) were trained
    on 256 tokens of T5, the others on 512.
    """

    name = "FluxTransformer2DModel"
    in_channels = 64
    GUIDANCE = 1.0

    def pipeline(self, config: dict[str, Any]) -> str:
        return "FluxPipeline"

    def forward(self, network: torch.nn.Module, config: dict[str, Any]) -> Forward:
        distilled = config.get("guidance_embeds")

        def forward(x: Tensor, labels: Tensor, encoder_hidden_states: Tensor, pooled_projections: Tensor) -> Tensor:
            output = network(
                hidden_states=_pack(x),
                timestep=labels / 1000,
                guidance=torch.full_like(labels, self.GUIDANCE) if distilled else None,
                pooled_projections=pooled_projections,
                encoder_hidden_states=encoder_hidden_states,
                txt_ids=x.new_zeros(encoder_hidden_states.shape[1], 3),
                img_ids=_positions(x),
                return_dict=False,
            )[0]
            return _unpack(output, x.shape)

        return forward

    def embed(
        self,
        pipeline: Any,
        captions: Sequence[str] | None,
        config: dict[str, Any],
        pixels: tuple[int, int],
        device: torch.device,
    ) -> Embeddings:
        tokens = self.t5_tokens(config)
        options = {"max_sequence_length": tokens} if tokens else {}
        embeddings, pooled, _ = pipeline.encode_prompt(_prompt(captions), None, device=device, **options)
        return {"encoder_hidden_states": embeddings, "pooled_projections": pooled}

    def t5_tokens(self, config: dict[str, Any]) -> int | None:
        return None if config.get("guidance_embeds") else 256

    def patch(self, config: dict[str, Any]) -> int:
        return 2

    def state_channels(self, config: dict[str, Any]) -> int:
        return int(config["in_channels"]) // 4


FAMILIES: dict[str, NetworkFamily] = {
    family.name: family for family in (UNet2D(), DiT(), UNet2DCondition(), SD3(), Flux())
}


def _prompt(captions: Sequence[str] | None) -> list[str]:
    """Return captions as a pipeline takes them, which is asked for no caption with an empty one."""
    return [""] if captions is None else list(captions)


def _pack(x: Tensor) -> Tensor:
    """Return the tokens (B, H/2 W/2, 4 C) of states (B, C, H, W), channels first within a token."""
    tokens = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 1, 3, 5)
    return tokens.flatten(3).flatten(1, 2)


def _unpack(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the states of the given shape (B, C, H, W) from their tokens: the inverse of `_pack`."""
    batch, channels, height, width = shape
    blocks = tokens.reshape(batch, height // 2, width // 2, channels, 2, 2)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)


def _positions(x: Tensor) -> Tensor:
    """Return (0, row, column) of each token, (H/2 W/2, 3)."""
    rows, columns = (torch.arange(n // 2, device=x.device) for n in x.shape[2:])
    grid = torch.cartesian_prod(torch.zeros(1, dtype=rows.dtype, device=x.device), rows, columns)
    return grid.to(x.dtype)
