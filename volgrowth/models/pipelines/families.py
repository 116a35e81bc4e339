"""Classes of networks: what each is shown beside x and a label, and what it conditions on.

A family checks a configuration before weights are loaded, and wraps the loaded network as a function
(x, labels, **condition) -> output, so that nothing else knows which class of network it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from volgrowth.errors import ModelError
from volgrowth.models.checkpoint_files import Component
from volgrowth.models.network import Conditioner
from volgrowth.models.pipelines.lora import add_lora
from volgrowth.models.pipelines.text import TextConditioner, readers
from volgrowth.numerics.denoisers import Condition

if TYPE_CHECKING:
    from volgrowth.models.pipelines.inspection import DiffusersFolder

Forward = Callable[..., Tensor]
Embeddings = dict[str, Tensor]


class NetworkFamily(ABC):
    """One class of networks of diffusers.

    Attributes:
        name: of the class.
        in_channels: what a configuration means that does not say it.
        convolutional: whether that is most of what its networks do.
    """

    name: str
    in_channels: int
    convolutional = False

    @abstractmethod
    def check(self, network: Component) -> None:
        """Raise ModelError if the configuration is not one that is measured right."""

    @abstractmethod
    def forward(self, network: torch.nn.Module, config: dict[str, Any]) -> Forward:
        """The network as a function (x, labels, **condition) -> output of x's shape."""

    @abstractmethod
    def conditioner(
        self, model: "DiffusersFolder", network: torch.nn.Module, dtype: torch.dtype, device: torch.device
    ) -> Conditioner | None:
        """What turns conditions into the keyword arguments of that function; None for a family that takes none."""

    @abstractmethod
    def condition(self, config: dict[str, Any]) -> str | None:
        """`class`, `caption`, or None."""

    def has_null(self, config: dict[str, Any]) -> bool:
        """Whether the network knows what no condition is."""
        return True

    def whole_labels(self, config: dict[str, Any]) -> bool:
        """Whether labels are looked up in a table."""
        return False

    def unit_range(self, config: dict[str, Any]) -> bool:
        """Whether the network's images are in [0, 1]."""
        return False

    def patch(self, config: dict[str, Any]) -> int:
        """Height and width of states that are one token to the network."""
        return 1

    def channels(self, config: dict[str, Any]) -> int:
        """Of a state."""
        return int(config["in_channels"])


class ClassConditioner:
    """Class labels as integers.

    Args:
        num_classes: labels run from 0 to this - 1.
        null: the label that stands for no class, None where there is none.
        device: where the network is.
    """

    kind = "class"

    def __init__(self, num_classes: int, null: int | None, device: torch.device):
        self.num_classes, self.null_label, self.device = num_classes, null, device
        self.null = null is not None

    def __call__(self, values: Sequence[Condition]) -> dict[str, Tensor]:
        for value in values:
            if problem := self.problem(value):
                raise ModelError(problem)
        labels = [self.null_label if value is None else value for value in values]
        return {"class_labels": torch.tensor(labels, dtype=torch.long).to(self.device, non_blocking=True)}

    def problem(self, value: Condition) -> str | None:
        if value is None:
            return None if self.null else "the model knows no image without a class: expected a class column"
        if isinstance(value, int) and 0 <= value < self.num_classes:
            return None
        return f"class {value!r} is none of the model's: expected 0 to {self.num_classes - 1}"

    def overflow(self, values: Sequence[Condition]) -> list[int]:
        return [0] * len(values)


class UNet2D(NetworkFamily):
    """UNet2DModel: DDPM, DDIM, score SDE and latent diffusion; without a condition, or with classes."""

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

    def forward(self, network: torch.nn.Module, config: dict[str, Any]) -> Forward:
        channels = config["in_channels"]

        def forward(x: Tensor, labels: Tensor, **condition: Tensor) -> Tensor:
            # networks that also predict a variance put it in channels of its own
            return network(x, labels, return_dict=False, **condition)[0][:, :channels]

        return forward

    def conditioner(
        self, model: "DiffusersFolder", network: torch.nn.Module, dtype: torch.dtype, device: torch.device
    ) -> Conditioner | None:
        classes = model.network.config.get("num_class_embeds")
        return ClassConditioner(classes, None, device) if classes else None

    def condition(self, config: dict[str, Any]) -> str | None:
        return "class" if config.get("num_class_embeds") else None

    def has_null(self, config: dict[str, Any]) -> bool:
        return not config.get("num_class_embeds")

    def whole_labels(self, config: dict[str, Any]) -> bool:
        return config.get("time_embedding_type") == "learned"

    def unit_range(self, config: dict[str, Any]) -> bool:
        return bool(config.get("center_input_sample"))


class DiT(NetworkFamily):
    """DiTTransformer2DModel: classes, of which the one after the last is none (arXiv 2212.09748)."""

    name = "DiTTransformer2DModel"
    in_channels = 4

    def check(self, network: Component) -> None:
        if not network.config.get("num_embeds_ada_norm"):
            raise ModelError(
                f"{network.folder / 'config.json'} has no num_embeds_ada_norm: expected the number of classes"
            )

    def forward(self, network: torch.nn.Module, config: dict[str, Any]) -> Forward:
        channels = config["in_channels"]

        def forward(x: Tensor, labels: Tensor, **condition: Tensor) -> Tensor:
            return network(x, timestep=labels, return_dict=False, **condition)[0][:, :channels]

        return forward

    def conditioner(
        self, model: "DiffusersFolder", network: torch.nn.Module, dtype: torch.dtype, device: torch.device
    ) -> Conditioner | None:
        classes = model.network.config["num_embeds_ada_norm"]
        return ClassConditioner(classes, classes, device)

    def condition(self, config: dict[str, Any]) -> str | None:
        return "class"

    def patch(self, config: dict[str, Any]) -> int:
        return int(config.get("patch_size", 2))


class TextFamily(NetworkFamily):
    """Networks that take captions, through the text encoders of a pipeline of diffusers.

    The null condition is what that pipeline guides away from when it is given no negative prompt.
    """

    @abstractmethod
    def pipeline(self, config: dict[str, Any]) -> str:
        """Class of the pipeline whose rules make captions embeddings."""

    @abstractmethod
    def embed(self, pipeline: Any, caption: str | None, model: "DiffusersFolder", device: torch.device) -> Embeddings:
        """Keyword arguments of the function, each (1, ...), for one caption, or None for the null condition."""

    def width(self, network: Any) -> int:
        """Of the embeddings that the network reads."""
        return int(network.config.joint_attention_dim)

    def t5_tokens(self, config: dict[str, Any]) -> int | None:
        """How many T5 reads, where that is not the default of the pipeline."""
        return None

    def check(self, network: Component) -> None:
        config, path = network.config, network.folder / "config.json"
        channels, outputs = config["in_channels"], config.get("out_channels") or config["in_channels"]
        if outputs < channels:
            raise ModelError(
                f"{path} has in_channels {channels} and out_channels {outputs}: expected a network that is shown "
                f"noisy latents alone, and no mask, depth or image beside them; wrap others with "
                f"factory:module:function"
            )

    def condition(self, config: dict[str, Any]) -> str | None:
        return "caption"

    def conditioner(
        self, model: "DiffusersFolder", network: torch.nn.Module, dtype: torch.dtype, device: torch.device
    ) -> Conditioner | None:
        assert model.text is not None
        pipeline = model.text.load(network, dtype, device)
        if model.settings.lora:
            add_lora(pipeline, model.settings.lora)
        embed = partial(self.embed, pipeline, model=model, device=device)
        conditioner = TextConditioner(embed, readers(pipeline, self.t5_tokens(model.network.config)))
        known, given = self.width(network), conditioner([None])["encoder_hidden_states"].shape[-1]
        if known != given:
            raise ModelError(
                f"the text encoders in {model.pipeline} make embeddings of {given} numbers, and the network in "
                f"{model.network.folder} reads {known}: expected the pipeline that it was trained in (--base)"
            )
        return conditioner


class UNet2DCondition(TextFamily):
    """UNet2DConditionModel: Stable Diffusion 1, 2 and XL (arXiv 2112.10752, 2307.01952).

    Stable Diffusion XL is told the size that an image had and how it was cropped: here that of the model's images,
    not cropped, as its pipeline does. Its null condition is zeros where `force_zeros_for_empty_prompt` says so, which
    is not what the caption '' gives.
    """

    name = "UNet2DConditionModel"
    in_channels = 4
    convolutional = True
    OTHERS = (
        *("class_embed_type", "num_class_embeds", "encoder_hid_dim", "encoder_hid_dim_type", "time_cond_proj_dim"),
        "center_input_sample",
    )
    """ModelOptions of networks that are shown something else beside a caption, or images in another range."""

    def check(self, network: Component) -> None:
        super().check(network)
        config, path = network.config, network.folder / "config.json"
        if found := next((key for key in self.OTHERS if config.get(key)), None):
            raise ModelError(
                f"{path} sets {found} to {config[found]!r}: expected a network that is shown latents and captions "
                f"alone; wrap this network with factory:module:function"
            )
        if config.get("addition_embed_type") not in (None, "text_time"):
            raise ModelError(
                f"{path} has addition_embed_type {config['addition_embed_type']!r}: expected none, or text_time as "
                f"Stable Diffusion XL has it; wrap this network with factory:module:function"
            )

    def width(self, network: Any) -> int:
        of_blocks = network.config.cross_attention_dim
        return int(of_blocks if isinstance(of_blocks, int) else of_blocks[0])

    def pipeline(self, config: dict[str, Any]) -> str:
        return "StableDiffusionXLPipeline" if config.get("addition_embed_type") else "StableDiffusionPipeline"

    def forward(self, network: torch.nn.Module, config: dict[str, Any]) -> Forward:
        def forward(x: Tensor, labels: Tensor, encoder_hidden_states: Tensor, **added: Tensor) -> Tensor:
            return network(x, labels, encoder_hidden_states, added_cond_kwargs=added or None, return_dict=False)[0]

        return forward

    def embed(self, pipeline: Any, caption: str | None, model: "DiffusersFolder", device: torch.device) -> Embeddings:
        prompt, guided = [caption or ""], caption is None
        found = pipeline.encode_prompt(
            prompt=prompt, device=device, num_images_per_prompt=1, do_classifier_free_guidance=guided
        )
        embeddings = {"encoder_hidden_states": found[1] if guided else found[0]}
        if model.network.config.get("addition_embed_type"):
            pooled = found[3] if guided else found[2]
            _, height, width = model.image_shape
            embeddings["text_embeds"] = pooled
            embeddings["time_ids"] = torch.tensor([[height, width, 0, 0, height, width]]).to(pooled)
        return embeddings


class SD3(TextFamily):
    """SD3Transformer2DModel: Stable Diffusion 3 and 3.5, flow matching (arXiv 2403.03206)."""

    name = "SD3Transformer2DModel"
    in_channels = 16

    def pipeline(self, config: dict[str, Any]) -> str:
        return "StableDiffusion3Pipeline"

    def forward(self, network: torch.nn.Module, config: dict[str, Any]) -> Forward:
        def forward(x: Tensor, labels: Tensor, **condition: Tensor) -> Tensor:
            return network(hidden_states=x, timestep=labels, return_dict=False, **condition)[0]

        return forward

    def embed(self, pipeline: Any, caption: str | None, model: "DiffusersFolder", device: torch.device) -> Embeddings:
        guided = caption is None
        found = pipeline.encode_prompt([caption or ""], None, None, device=device, do_classifier_free_guidance=guided)
        embeddings, pooled = (found[1], found[3]) if guided else (found[0], found[2])
        return {"encoder_hidden_states": embeddings, "pooled_projections": pooled}

    def patch(self, config: dict[str, Any]) -> int:
        return int(config.get("patch_size", 2))


class Flux(TextFamily):
    """FluxTransformer2DModel: flow matching, on latents packed 2 x 2 into tokens.

    The state keeps its height and width; tokens exist only inside the function. Networks with `guidance_embeds` were
    distilled to answer as if guided with a scale that they are told. They are told 1, which stands for the flow of
    the captions themselves and is what diffusers' training examples set; the pipeline samples with 3.5. The null
    condition is the prompt '', which is what the pipeline guides away from by `true_cfg_scale`; a distilled network
    was not trained to know it, so its differences say less. Networks without `guidance_embeds` (schnell) were
    trained on 256 tokens of T5, the others on 512.
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

    def embed(self, pipeline: Any, caption: str | None, model: "DiffusersFolder", device: torch.device) -> Embeddings:
        tokens = self.t5_tokens(model.network.config)
        options = {"max_sequence_length": tokens} if tokens else {}
        embeddings, pooled, _ = pipeline.encode_prompt([caption or ""], None, device=device, **options)
        return {"encoder_hidden_states": embeddings, "pooled_projections": pooled}

    def t5_tokens(self, config: dict[str, Any]) -> int | None:
        return None if config.get("guidance_embeds") else 256

    def patch(self, config: dict[str, Any]) -> int:
        return 2

    def channels(self, config: dict[str, Any]) -> int:
        return int(config["in_channels"]) // 4


def _pack(x: Tensor) -> Tensor:
    """(B, C, H, W) to tokens (B, H/2 W/2, 4 C), channels first within a token."""
    tokens = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 1, 3, 5)
    return tokens.flatten(3).flatten(1, 2)


def _unpack(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """And back to a state of this shape."""
    batch, channels, height, width = shape
    blocks = tokens.reshape(batch, height // 2, width // 2, channels, 2, 2)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)


def _positions(x: Tensor) -> Tensor:
    """(0, row, column) of each token."""
    rows, columns = (torch.arange(n // 2, device=x.device) for n in x.shape[2:])
    grid = torch.cartesian_prod(torch.zeros(1, dtype=rows.dtype, device=x.device), rows, columns)
    return grid.to(x.dtype)
