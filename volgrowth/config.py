"""Settings of an audit: frozen, typed, and validated when built, so that a wrong setting is an error within a second.

Noise levels are clamped to the range that the model was trained on.

A setting either changes scores, and is then part of `AuditConfig.digest`, or it only says how to run the audit
(`EXECUTION`), and may then differ when the audit is resumed.
"""

import glob
import hashlib
import json
import os
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from volgrowth.credentials import Credentials, hide, known_credentials, remember
from volgrowth.errors import UsageError
from volgrowth.held import MEMORY, held_by, hold
from volgrowth.wrong_settings import wrong_setting

DataKind = Literal["parquet", "webdataset", "folder", "arrow"]
NoiseLevel = Annotated[float, Field(gt=0, le=1000)]
Count = Annotated[int, Field(ge=1, le=100_000)]
LOW_PRECISION = ("bfloat16", "float16")
SCREEN_EVALUATIONS = 3
BATCH_SIZE = 64
AUTO = "auto"
MAX_BYTES = 1 << 28
"""Most bytes of an encoded image: those of one of the most pixels that are decoded, as RGB without compression."""
# braces that stand for several names, as in train-{00000..00012}.tar or {train,test}.parquet
BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")


class Frozen(BaseModel):
    """A settings object: immutable, no unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _MeasureSettings(Frozen):
    """The settings of one preset, and what they cost in network evaluations per image."""

    @property
    def evaluations(self) -> int:
        """Network evaluations per image for everything but the comparisons below."""
        raise NotImplementedError

    @property
    def evaluations_after_screen(self) -> int:
        """Those for an image that a cascade has screened: all of them unless the preset shares some with the screen."""
        return self.evaluations

    @property
    def unconditional_evaluations(self) -> int:
        """Further ones for growth without the condition."""
        return self.evaluations

    @property
    def guided_evaluations(self) -> int:
        """Further ones for growth with guidance; 0 where it follows from growth with and without the condition."""
        return 0

    @property
    def includes_screen(self) -> bool:
        """Whether the preset measures all that preset `screen` does."""
        return self.evaluations_after_screen < self.evaluations


class _ForwardPasses(_MeasureSettings):
    """The levels of the three forward passes that preset `screen` takes and others take among more."""

    norm_level: NoiseLevel = 0.1
    loss_level: NoiseLevel = 0.3

    @model_validator(mode="after")
    def _rising_levels(self) -> Self:
        if self.loss_level <= self.norm_level:
            raise ValueError(f"loss_level must be above norm_level, which is {self.norm_level:g}")
        return self


class ScreenMeasure(_ForwardPasses):
    """Preset `screen`: what three forward passes tell, without derivatives.

    One at the image itself gives the length of the noise that the model expects there, at `norm_level`. Two at
    `loss_level`, under a noise and its opposite, give the denoising loss and `growth`: how many directions have
    collapsed around the image (`numerics.forward_passes`). docs/detection.md says how the levels were chosen.
    """

    preset: Literal["screen"] = "screen"

    @property
    def evaluations(self) -> int:
        """Network evaluations per image."""
        return SCREEN_EVALUATIONS

    @property
    def unconditional_evaluations(self) -> int:
        """The pair again, without the condition."""
        return 2


class StandardMeasure(_ForwardPasses):
    """Preset `standard`: what preset `screen` measures, and the growth of one axis, in four forward passes.

    `growth` is the log volume growth of one axis, common to all images, over one step of the flow from `norm_level` to
    `loss_level`. It is a difference over a displacement of the noise's own size, so that it costs one evaluation more
    than the noise norm, and holds in low precision. What makes the evidence is the same as in preset `screen`.
    """

    preset: Literal["standard"] = "standard"

    @property
    def evaluations(self) -> int:
        """Network evaluations per image: the screen's, and one for the axis."""
        return SCREEN_EVALUATIONS + 1

    @property
    def evaluations_after_screen(self) -> int:
        """Both evaluations of the axis, since the screen keeps no answer of the network."""
        return 2

    @property
    def unconditional_evaluations(self) -> int:
        """Growth of the axis again, without the condition."""
        return 2


class VolumeMeasure(_ForwardPasses):
    """Preset `volume`: growth of the full-dimensional volume, its log likelihood, and what preset `screen` measures.

    `growth` is the log volume in y-coordinates along `num_levels` noise levels, uniform in their logarithm. The default
    range is that of the published schedule. Two probes rank the demo's images as the exact volume does
    (tests/commands/test_demo.py::test_volume_ranks_as_the_exact_volume_of_the_dense_jacobian); one ranks less well.
    """

    preset: Literal["volume"] = "volume"
    num_levels: Annotated[int, Field(ge=2, le=10_000)] = 19
    smallest_level: NoiseLevel = 0.0105
    largest_level: NoiseLevel = 150.0
    num_probes: Count = 2

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.largest_level <= self.smallest_level:
            raise ValueError(f"largest_level must be above smallest_level, which is {self.smallest_level:g}")
        return self

    @property
    def evaluations(self) -> int:
        """Network evaluations per image: the screen's, and those of the traces."""
        return SCREEN_EVALUATIONS + self.evaluations_after_screen

    @property
    def evaluations_after_screen(self) -> int:
        """At each level one forward pass, and one backward pass per probe."""
        return self.num_levels * (1 + self.num_probes)

    @property
    def unconditional_evaluations(self) -> int:
        """The traces again, without the condition."""
        return self.num_levels * (1 + self.num_probes)


class PaperMeasure(_MeasureSettings):
    """Preset `paper`: volume growth as published (arXiv 2503.19429), one axis and one step of 1000.

    `growth` is the log volume in x-coordinates. It needs a network in true float32 or float64, because differences
    lose their meaning in lower precision.
    """

    preset: Literal["paper"] = "paper"
    num_tangents: Count = 1
    num_steps: Annotated[int, Field(ge=1, le=1000)] = 1
    derivative: Literal["difference", "jvp"] = "difference"
    radius: Annotated[float, Field(gt=0)] = 0.05

    @property
    def evaluations(self) -> int:
        """Network evaluations per image: at each step one for the image, and one for each tangent."""
        return self.num_steps * (1 + self.num_tangents)

    @property
    def guided_evaluations(self) -> int:
        """A guided step evaluates the network with and without the condition."""
        return 2 * self.evaluations

    @property
    def times(self) -> tuple[float, ...]:
        """The first `num_steps` + 1 of the published times 1e-3, 2e-3, ..., 1.001."""
        return tuple((1 + k) / 1000 for k in range(self.num_steps + 1))


Measure = Annotated[StandardMeasure | ScreenMeasure | PaperMeasure | VolumeMeasure, Field(discriminator="preset")]
PRESETS: dict[str, Any] = {
    kind.model_fields["preset"].default: kind.model_fields
    for kind in (StandardMeasure, ScreenMeasure, PaperMeasure, VolumeMeasure)
}

_RUNNING = ("engine", "workers", "min_workers", "wait_minutes", "hang_minutes", "gpus_per_worker", "ray_address")
EXECUTION = frozenset((*_RUNNING, "output", "max_failed", "trust_model", "log_json", "data_kind", "holdout_kind"))


class AuditConfig(Frozen):
    """The settings of an audit. docs/api.md describes each of them.

    Build one with `AuditConfig.build`, which raises a `UsageError` that names the setting, what was given and what was
    expected.
    """

    model: str
    revision: str | None = None
    subfolder: str | None = None
    base: str | None = None
    lora: str | None = None
    resolution: Annotated[int, Field(ge=1, le=16_384)] | None = None
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    data: str
    data_config: str | None = None
    split: str | None = None
    image_column: str | None = None
    id_column: str | None = None
    class_column: str | None = None
    caption_column: str | None = None
    guidance: Annotated[float, Field(ge=0, le=1000)] | None = None
    holdout: str | None = None
    holdout_config: str | None = None
    holdout_split: str | None = None
    measure: Measure = StandardMeasure()
    cascade: bool = False
    screen_share: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    screen_sample: Annotated[int, Field(ge=0)] | None = None
    reference: str | None = None
    embedding_column: str | None = None
    embedding_similarity: Annotated[float, Field(gt=0, le=1)] = 0.95
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    shard_size: Count = 1024
    batch_size: Count | None = BATCH_SIZE
    compile: bool = False
    channels_last: Literal[True, False, "auto"] | None = None
    max_pixels: Annotated[int, Field(ge=1)] = 89_478_485
    max_bytes: Annotated[int, Field(ge=1)] = MAX_BYTES

    output: str
    engine: Literal["ray", "local"] = "ray"
    workers: Annotated[int, Field(ge=1)] | None = None
    min_workers: Annotated[int, Field(ge=1)] = 1
    wait_minutes: Annotated[float, Field(gt=0)] = 30.0
    hang_minutes: Annotated[float, Field(gt=0, le=100_000)] = 5.0
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    ray_address: str | None = None
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.01
    trust_model: bool = False
    log_json: str | None = None
    data_kind: DataKind | None = None
    holdout_kind: DataKind | None = None
    _credentials: dict[str, Credentials] = PrivateAttr(default_factory=known_credentials)
    _model_object: Any = PrivateAttr(default=None)

    @field_validator("model", "base", "lora", "data", "holdout", "reference", "output")
    @classmethod
    def _findable(cls, value: str | None, info: ValidationInfo) -> str | None:
        """Make local paths absolute, so that workers and later commands find them, and take credentials out of URLs."""
        if value is None or "://" in value:
            return value and hide(value)
        path = os.path.expanduser(value)
        pattern = glob.has_magic(path) or BRACES.search(path)
        local = info.field_name == "output" or os.path.exists(path) or pattern
        return os.path.abspath(path) if local else value

    def model_post_init(self, context: Any) -> None:
        """Take along a model that was given as an object, so that it comes to the processes of workers."""
        if self.model.startswith(MEMORY):
            self._model_object = held_by(self.model)

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Have the process of a worker know the credentials of the URLs, and a model that was given as an object."""
        super().__setstate__(state)
        remember(self._credentials)
        if self._model_object is not None:
            hold(self.model, self._model_object)

    @model_validator(mode="after")
    def _screenable(self) -> Self:
        if not self.cascade:
            return self
        if not self.holdout:
            raise ValueError("cascade needs a holdout, which says how high an innocent image comes in the screen")
        if self.measure.evaluations <= SCREEN_EVALUATIONS:
            raise ValueError(
                f"cascade saves nothing where the measure takes {self.measure.evaluations} evaluations an image and "
                f"the screen {SCREEN_EVALUATIONS}: expected a measure that takes more, or no cascade"
            )
        return self

    @model_validator(mode="after")
    def _conditional(self) -> Self:
        if self.class_column and self.caption_column:
            raise ValueError("class_column and caption_column are both given: expected the one the model takes")
        if self.guidance is not None and not self.condition_column:
            raise ValueError("guidance needs a condition: expected a class_column or caption_column with it")
        return self

    @model_validator(mode="after")
    def _differentiable(self) -> Self:
        measure = self.measure
        if isinstance(measure, PaperMeasure) and measure.derivative == "difference" and self.dtype in LOW_PRECISION:
            raise ValueError(
                f"a difference over a radius of {measure.radius:g} is lost in the rounding of {self.dtype}: expected "
                f"measure.derivative=jvp, or dtype float32"
            )
        return self

    @field_validator("batch_size", mode="before")
    @classmethod
    def _chosen(cls, value: Any) -> Any:
        return None if value == AUTO else value

    @field_validator("measure", mode="before")
    @classmethod
    def _default_preset(cls, value: Any) -> Any:
        return {"preset": "standard", **value} if isinstance(value, dict) else value

    @classmethod
    def build(cls, **settings: Any) -> Self:
        """Build the settings of an audit from keyword arguments.

        Args:
            **settings: values by the name of the setting; `measure` is a dict with `preset` and its settings.

        Returns:
            The validated settings, with local paths made absolute.

        Raises:
            UsageError: a setting is unknown or has a wrong value; the sentence names the first such setting.
        """
        try:
            return cls(**settings)
        except ValidationError as error:
            raise UsageError(wrong_setting(error.errors()[0], {"": cls.model_fields, **PRESETS})) from None

    @property
    def condition_column(self) -> str | None:
        """The column of classes or captions, None if the audit has no conditions."""
        return self.class_column or self.caption_column

    @property
    def screen(self) -> ScreenMeasure:
        """The measure of a cascade's screen, at the levels of the preset if it takes the same forward passes."""
        known = self.measure.model_dump(include=set(ScreenMeasure.model_fields), exclude={"preset"})
        return ScreenMeasure(**known)

    @property
    def images_at_once(self) -> int:
        """Size of a micro-batch; the usual one before a search has found it (batch_size auto)."""
        return self.batch_size or BATCH_SIZE

    @property
    def model_arguments(self) -> dict[str, Any]:
        """The arguments of `load_model` and `inspect_model` that the settings give."""
        names = ("revision", "subfolder", "base", "lora", "resolution")
        return {"name": self.model, **{name: getattr(self, name) for name in names}}

    def evaluations(self, has_null: bool, screened: bool = False) -> int:
        """Return the network evaluations per image.

        Args:
            has_null: whether the model supports unconditional input.
            screened: whether a cascade has screened the image before.
        """
        measure = self.measure
        total = measure.evaluations_after_screen if screened else measure.evaluations
        if self.condition_column is not None and has_null:
            total += measure.unconditional_evaluations
            total += 0 if self.guidance is None else measure.guided_evaluations
        return total

    @property
    def frozen(self) -> dict[str, Any]:
        """The settings that change scores, as JSON values."""
        without = (
            set() if self.embedding_column else {"embedding_column", "embedding_similarity"}
        )  # as before they were
        return self.model_dump(mode="json", exclude=set(EXECUTION) | without)

    @property
    def digest(self) -> str:
        """sha256 of the settings that change scores."""
        return "sha256:" + hashlib.sha256(json.dumps(self.frozen, sort_keys=True).encode()).hexdigest()
