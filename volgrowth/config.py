"""Settings of an audit: frozen, typed, validated when built, so that a wrong audit fails in a second.

Noise levels beyond those a model was trained on are moved to the nearest one that it was.

A setting either changes scores, and is then part of `AuditConfig.digest`, or it only says how to run
(`EXECUTION`), and may differ when an audit is resumed.
"""

import glob
import hashlib
import json
import os
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from volgrowth.errors import UsageError

NoiseLevel = Annotated[float, Field(gt=0, le=1000)]
Count = Annotated[int, Field(ge=1, le=100_000)]
LOW_PRECISION = ("bfloat16", "float16")
SCREEN_EVALUATIONS = 2
BATCH_SIZE = 64
AUTO = "auto"


class Frozen(BaseModel):
    """A settings object: immutable, no unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StandardMeasure(Frozen):
    """Preset `standard`: collapsed directions at middle noise levels, and the denoising loss.

    The image is carried along the flow through the levels `run_in` and `levels`; `growth` is the mean over `levels` of
    the trace rate there. On the bench (docs/detection.md) rates at points that the flow has moved detect more than
    rates at the image itself.
    """

    preset: Literal["standard"] = "standard"
    run_in: tuple[NoiseLevel, ...] = (0.03, 0.07)
    levels: Annotated[tuple[NoiseLevel, ...], Field(min_length=1)] = (0.16, 0.27, 0.45)
    num_probes: Count = 2
    loss_level: NoiseLevel = 0.34
    num_noises: Count = 4

    @model_validator(mode="after")
    def _rising(self) -> Self:
        path = (*self.run_in, *self.levels)
        if any(later <= earlier for earlier, later in pairwise(path)):
            raise ValueError(f"run_in and levels must rise, got {', '.join(f'{level:g}' for level in path)}")
        return self

    @property
    def evaluations(self) -> int:
        """Network evaluations an image: a trace costs one forward and one backward per probe."""
        return len(self.run_in) + self.beside() + self.num_noises

    def beside(self, guidance: float | None = None) -> int:
        """Those of the same rates without the condition, from which those of the guided flow follow."""
        return len(self.levels) * (1 + self.num_probes)


class VolumeMeasure(Frozen):
    """Preset `volume`: growth of the full-dimensional volume, and the log likelihood it gives.

    `growth` is the log volume in y-coordinates along `num_levels` noise levels, uniform in their logarithm; the
    default range is that of the published schedule. Two probes rank the demo's images as the exact volume does
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
        """Network evaluations an image: one forward, and one backward per probe, at each level."""
        return self.num_levels * (1 + self.num_probes)

    def beside(self, guidance: float | None = None) -> int:
        """Those of the same rates without the condition, from which those of the guided flow follow."""
        return self.evaluations


class PaperMeasure(Frozen):
    """Preset `paper`: volume growth as published (arXiv 2503.19429), one axis and one step of 1000.

    `growth` is the log volume in x-coordinates. Only true float32 or float64 networks are measured so:
    differences lose their meaning in lower precision.
    """

    preset: Literal["paper"] = "paper"
    num_tangents: Count = 1
    num_steps: Annotated[int, Field(ge=1, le=1000)] = 1
    derivative: Literal["difference", "jvp"] = "difference"
    radius: Annotated[float, Field(gt=0)] = 0.05

    @property
    def evaluations(self) -> int:
        """Network evaluations an image: one for it and one for each tangent (more where tangents go one by one)."""
        return self.num_steps * (1 + self.num_tangents)

    def beside(self, guidance: float | None = None) -> int:
        """Those of the flow without the condition, and of the guided one, each step of which takes both."""
        return self.evaluations * (1 if guidance is None else 3)

    @property
    def times(self) -> tuple[float, ...]:
        """The first `num_steps` + 1 of the published times 1e-3, 2e-3, ..., 1.001."""
        return tuple((1 + k) / 1000 for k in range(self.num_steps + 1))


Measure = Annotated[StandardMeasure | PaperMeasure | VolumeMeasure, Field(discriminator="preset")]
PRESETS = ("standard", "paper", "volume")

EXECUTION = frozenset(
    {
        "output",
        "engine",
        "workers",
        "min_workers",
        "wait_minutes",
        "gpus_per_worker",
        "ray_address",
        "max_failed",
        "log_json",
    }
)


class AuditConfig(Frozen):
    """Everything an audit needs to know.

    Raises:
        UsageError: by `AuditConfig.build`, naming the setting, what was given and what was expected.
    """

    model: str
    revision: str | None = None
    subfolder: str | None = None
    base: str | None = None
    lora: str | None = None
    resolution: Annotated[int, Field(ge=1, le=16_384)] | None = None
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    data: str
    split: str | None = None
    image_column: str | None = None
    id_column: str | None = None
    class_column: str | None = None
    caption_column: str | None = None
    guidance: Annotated[float, Field(ge=0, le=1000)] | None = None
    holdout: str | None = None
    holdout_split: str | None = None
    measure: Measure = StandardMeasure()
    adaptive: bool = False
    cascade: bool = False
    screen_share: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    screen_sample: Annotated[int, Field(ge=0)] | None = None
    reference: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    shard_size: Count = 1024
    batch_size: Count | None = BATCH_SIZE
    compile: bool = False
    max_pixels: Annotated[int, Field(ge=1)] = 89_478_485

    output: str
    engine: Literal["ray", "local"] = "ray"
    workers: Annotated[int, Field(ge=1)] | None = None
    min_workers: Annotated[int, Field(ge=1)] = 1
    wait_minutes: Annotated[float, Field(gt=0)] = 30.0
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    ray_address: str | None = None
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.01
    log_json: str | None = None

    @field_validator("model", "base", "lora", "data", "holdout", "reference", "output")
    @classmethod
    def _findable(cls, value: str | None, info: ValidationInfo) -> str | None:
        """Local paths become absolute, so that workers and later commands find them from anywhere."""
        if value is None or "://" in value:
            return value
        path = os.path.expanduser(value)
        local = info.field_name == "output" or os.path.exists(path) or glob.has_magic(path)
        return os.path.abspath(path) if local else value

    @model_validator(mode="after")
    def _refinable(self) -> Self:
        if self.adaptive and not (isinstance(self.measure, StandardMeasure) and self.measure.num_probes > 1):
            raise ValueError("adaptive needs the standard error of preset standard with several probes")
        return self

    @model_validator(mode="after")
    def _screenable(self) -> Self:
        if not self.cascade:
            return self
        if self.adaptive:
            raise ValueError("cascade and adaptive are both given: expected one, since each measures other rows again")
        if not self.holdout:
            raise ValueError("cascade needs a holdout, which says how high an innocent image comes in the screen")
        if self.measure.evaluations <= 2 * SCREEN_EVALUATIONS:
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
        """The same as the constructor, with the first problem said in one sentence."""
        try:
            return cls(**settings)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"] if part not in PRESETS) or "settings"
            given = "" if problem["type"] == "missing" or not problem["loc"] else f", got {problem['input']!r}"
            raise UsageError(f"setting {where}: {problem['msg']}{given}") from None

    @property
    def condition_column(self) -> str | None:
        """The column of classes or captions."""
        return self.class_column or self.caption_column

    @property
    def images_at_once(self) -> int:
        """Size of a micro-batch; where it is to be found by a search, a usual one for what comes before that."""
        return self.batch_size or BATCH_SIZE

    @property
    def model_arguments(self) -> dict[str, Any]:
        """What `load_model` and `inspect_model` are called with."""
        names = ("revision", "subfolder", "base", "lora", "resolution")
        return {"name": self.model, **{name: getattr(self, name) for name in names}}

    def evaluations(self, has_null: bool) -> int:
        """Network evaluations an image, by a model that knows what no condition is or does not."""
        contrast = self.condition_column is not None and has_null
        return self.measure.evaluations + (self.measure.beside(self.guidance) if contrast else 0)

    @property
    def frozen(self) -> dict[str, Any]:
        """The settings that change scores, as JSON values."""
        return self.model_dump(mode="json", exclude=set(EXECUTION))

    @property
    def digest(self) -> str:
        """sha256 of the settings that change scores."""
        return "sha256:" + hashlib.sha256(json.dumps(self.frozen, sort_keys=True).encode()).hexdigest()
