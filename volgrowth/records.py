"""The tables of an audit: their columns, the type of each and its meaning.

Columns may be added, never renamed; the footer of every file holds `SCHEMA_VERSION`. Scores are null in rows
whose status is not `ok`.
"""

from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ModelInfo:
    """The manifest's record of a model.

    Attributes:
        name: path, hub id or factory, as the user gave it.
        kind: family of the model, such as its pipeline class.
        image_shape: (channels, height, width) of its images.
        hash: of its weights and configuration.
        parameters: number of the network's parameters, if known.
        latent_shape: (channels, height, width) of the latents in which growth is measured; None for a model of pixels.
        condition: kind of condition that the model takes, `class` or `caption`; None if it takes none.
        has_null: whether the model supports unconditional input.
        unknown_settings: entries of its configurations that nothing here knows, as `FILE: KEY=VALUE`.
        notes: sentences about what was left aside or assumed when the model was opened.
        source_hash: of a factory's name and source alone, which was its whole hash in older audits; else None.
        files: digest of all files that this was read from; None for a factory, and in older audits.
    """

    name: str
    kind: str
    image_shape: tuple[int, ...]
    hash: str
    parameters: int | None
    latent_shape: tuple[int, ...] | None = None
    condition: str | None = None
    has_null: bool = True
    unknown_settings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source_hash: str | None = None
    files: str | None = None

    def is_model_of(self, recorded: "ModelInfo") -> bool:
        """Return True if this is the model of a manifest; older manifests know a factory by its source alone."""
        if recorded.source_hash is None and self.source_hash is not None:
            return recorded.hash == self.source_hash
        return recorded.hash == self.hash

    def lines(self) -> list[str]:
        """Return what the user must know about how the model was opened: nothing for most models."""
        unknown = self.unknown_settings
        settings = [f"model: settings that nothing knows were ignored: {', '.join(unknown)}"] if unknown else []
        return settings + [f"model: {note}" for note in self.notes]

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of what the flow moves: of the latents, or of the images of a model without latents."""
        return self.latent_shape or self.image_shape


class Status(StrEnum):
    """Outcome of scoring a row. Every row of the data set has exactly one."""

    OK = "ok"
    UNDECODABLE = "undecodable"
    """the bytes are missing or are no image"""
    WRONG_SHAPE = "wrong_shape"
    """an image, but not one that the model could have been trained on"""
    TOO_LARGE = "too_large"
    """the image has more bytes, pixels or scans than a decoder should be asked for: a decompression bomb"""
    NON_FINITE = "non_finite"
    """the measurement gave NaN or infinity"""
    WRONG_CONDITION = "wrong_condition"
    """a class or caption that the model cannot be given"""
    CRASHED = "crashed"
    """scoring the row ended its process"""
    TIMED_OUT = "timed_out"
    """scoring the row did not end"""


@dataclass(frozen=True)
class Failure:
    """What came of a task, or of the row that it was divided down to, that failed for good.

    Attributes:
        reason: why, in words.
        status: the status of the row.
    """

    reason: str
    status: Status = Status.CRASHED


class Mark(StrEnum):
    """A reason not to take a score at face value. A row may carry several."""

    ABOVE_CEILING = "above_ceiling"
    """the growth is larger than any exact denoiser can have (see `volgrowth.numerics.growth`): network error"""
    SIGN_FLIP = "sign_flip"
    """a step reversed a tangent: the step is too long for the curvature there"""
    CAPTION_CUT = "caption_cut"
    """the model sees only the beginning of the caption"""


def column(name: str, type_: pa.DataType, meaning: str) -> pa.Field:
    """Return a column of a schema, its meaning in the field's metadata."""
    return pa.field(name, type_, metadata={"meaning": meaning})


SCORES = pa.schema(
    [
        column("row", pa.int64(), "position of the image in the frozen order of the data set; unique"),
        column("image_id", pa.string(), "id from the user's column, else sha256: of the encoded bytes"),
        column("source", pa.string(), "file that the image came from, and its row in that file"),
        column("class", pa.string(), "class of the image, as text; null without a class column, or a class in it"),
        column("status", pa.string(), "ok, or the kind of failure"),
        column("error", pa.string(), "reason of the failure; null where status is ok"),
        column("growth", pa.float64(), "main score of the preset, before calibration"),
        column("growth_error", pa.float64(), "standard error of growth over its probes; no longer measured"),
        column("growth_unconditional", pa.float64(), "growth without the condition; null where none was given"),
        column("growth_guided", pa.float64(), "growth of the flow with guidance; null without a guidance scale"),
        column("growth_contrast", pa.float64(), "growth - growth_unconditional: the part that the condition adds"),
        column("rates", pa.list_(pa.float32()), "growth at each noise level or step, in the order of the manifest"),
        column("loss", pa.float64(), "denoising loss: mean squared error of the predicted noise"),
        column("lid", pa.float64(), "local intrinsic dimension, estimated by FLIPD; no longer measured"),
        column("noise_norm", pa.float64(), "length of the noise that the model expects in the image itself"),
        column("sharpness", pa.float64(), "curvature of the log density around the image; no longer measured"),
        column("screen", pa.float64(), "growth as preset screen measures it: collapsed directions around the image"),
        column("log_likelihood", pa.float64(), "log density of the image at the smallest level, nats (preset volume)"),
        column(
            "tokens_cut",
            pa.int32(),
            "number of the caption's tokens that the model does not see; null without a caption",
        ),
        column("marks", pa.list_(pa.string()), "reasons not to take the score at face value"),
        column(
            "png_bytes",
            pa.int32(),
            "size of the image, as the model sees it, as PNG: by the entropy of its steps",
        ),
        column("variance", pa.float32(), "variance of the pixels in [-1, 1]"),
        column("total_variation", pa.float32(), "mean absolute difference between neighbouring pixels"),
        column("mean", pa.float32(), "mean of the pixels in [-1, 1]"),
        column("edge_density", pa.float32(), "share of neighbouring pixels that differ by more than 0.2"),
        column("phash", pa.uint64(), "perceptual hash, by which near duplicates are found"),
        column("content_hash", pa.uint64(), "hash of the pixels that the model sees, by which copies are found"),
        column(
            "bytes_hash", pa.uint64(), "hash of the encoded image, by which a data set that has changed is recognised"
        ),
        column("nfe", pa.int32(), "number of network evaluations spent on the row"),
        column("batch", pa.int32(), "number of images in the micro-batch in which the row was scored"),
    ]
)

# a cascade's screen is the sum of what these columns show, each counted so often
SCREEN_WEIGHTS = {"loss": 1.0, "noise_norm": 1.0}

FINDINGS = pa.schema(
    [
        column("row", pa.int64(), "position of the image in the frozen order of the data set; unique"),
        column("image_id", pa.string(), "id of the image, as in scores"),
        column("growth", pa.float64(), "main score of the preset, as in scores"),
        column("expected_growth", pa.float64(), "growth that an image of this complexity shows anyway"),
        column("excess_growth", pa.float64(), "growth - expected_growth"),
        column(
            "evidence",
            pa.float64(),
            "weighted sum of the parts, in units of the held-out images' spread; null if the image is of one colour",
        ),
        column(
            "evidence_growth",
            pa.float64(),
            "part of growth, in units of the held-out images' spread or of their tail's; null if not a part",
        ),
        column("evidence_loss", pa.float64(), "part of a low denoising loss, in the same units; null if not measured"),
        column("evidence_noise_norm", pa.float64(), "part of little expected noise, likewise; half of it is added"),
        column(
            "growth_contrast", pa.float64(), "growth with the condition less without it, as in scores; null without one"
        ),
        column(
            "p_value",
            pa.float64(),
            "p-value of the evidence, tail included; 1 if outside_range, of one colour or screened out",
        ),
        column("p_value_conformal", pa.float64(), "the same without a tail: by counting held-out images; else null"),
        column(
            "cluster_p_value",
            pa.float64(),
            "p-value of the image's cluster: that of its strongest trials, with the number of trials paid for (Simes)",
        ),
        column("trials", pa.int32(), "number of trials in the cluster: rows in the range, copies of one score once"),
        column("q_value", pa.float64(), "cluster_p_value adjusted over clusters by Benjamini and Hochberg"),
        column(
            "false_bound",
            pa.float32(),
            "largest share of false flags among all clusters at least as suspicious, at 90% confidence for every cut "
            "at once; null without held-out images",
        ),
        column("memorized", pa.bool_(), "the image's cluster is flagged by its evidence: q_value is at most the rate"),
        column("precursor", pa.bool_(), "the same by a low loss: loss_q_value is at most the rate"),
        column("cluster", pa.int64(), "smallest row of the image's near duplicates and copies, which are one test"),
        column("copies", pa.int32(), "number of rows in that group"),
        column(
            "duplicate_rule",
            pa.string(),
            "what brought the row into its cluster: hash (same pixels, or alike by perceptual hash) or embedding (by "
            "the embedding column); null for a row that is alone",
        ),
        column("strongest", pa.bool_(), "the row stands for its cluster: the judged row of smallest p-value"),
        column("identical", pa.int64(), "smallest row with the same pixels"),
        column("outside_range", pa.bool_(), "simpler or more complex than all calibration images: not judged"),
        column("excess_loss", pa.float64(), "loss - expected loss; low is suspicious"),
        column("q_value_by", pa.float64(), "cluster_p_value adjusted by Benjamini and Yekutieli: any dependence"),
        column("loss_p_value", pa.float64(), "p-value of a loss as low as this"),
        column("loss_cluster_p_value", pa.float64(), "the same of the image's cluster, its trials paid for"),
        column("loss_q_value", pa.float64(), "loss_cluster_p_value adjusted by Benjamini and Hochberg"),
        column("loss_q_value_by", pa.float64(), "loss_cluster_p_value adjusted by Benjamini and Yekutieli"),
        column("verified_hits", pa.int32(), "number of samples that reproduced the image; null until verified"),
        column(
            "rate",
            pa.float32(),
            "share of the model's samples that are copies of the image or of one of its cluster; null if not measured, "
            "or not measurable",
        ),
        column("rate_low", pa.float32(), "lower end of its 95% interval"),
        column("rate_high", pa.float32(), "upper end of its 95% interval"),
    ]
)

SAMPLES = pa.schema(
    [
        column("number", pa.int64(), "number of the sample; with the audit's seed it decides the noise"),
        column("nearest_row", pa.int64(), "first row of the nearest image if that is audited, else null"),
        column("nearest_holdout_row", pa.int64(), "first row of the nearest image if that is held out, else null"),
        column(
            "distance",
            pa.float64(),
            "Euclidean distance to the nearest image, for pixels in [-1, 1], or of unit contrast",
        ),
        column("ratio", pa.float64(), "distance divided by the mean distance to the 50 nearest images"),
        column("hit", pa.bool_(), "the sample is a copy of the nearest image: ratio is small enough"),
    ]
)

RATES = pa.schema(
    [
        column("row", pa.int64(), "row that stands for the image whose rate was measured"),
        column("cluster", pa.int64(), "cluster of the image, as in findings: a copy of any of its images counts"),
        column("rate", pa.float64(), "share of samples that are copies; null if it is not measurable"),
        column("rate_low", pa.float64(), "lower end of its 95% interval"),
        column("rate_high", pa.float64(), "upper end of its 95% interval"),
        column("draws", pa.int32(), "draws of noise behind the rate"),
        column("returned", pa.int32(), "number of these that became a copy"),
        column("effective", pa.float64(), "effective number of these, from their weights"),
        column("nfe", pa.int64(), "number of network evaluations spent on the image"),
    ]
)

RETURNS = pa.schema(
    [
        column("row", pa.int64(), "row of the image that was noised and decoded"),
        column("flagged", pa.bool_(), "true for a flagged image, false for a control of the same complexity"),
        column("matched_row", pa.int64(), "row of the image's control, or of the image that it is a control of"),
        column("noise_level", pa.float64(), "level to which the image was noised"),
        column("draws", pa.int32(), "number of noises drawn"),
        column("returned", pa.int32(), "number of draws that were decoded into the image again"),
    ]
)
