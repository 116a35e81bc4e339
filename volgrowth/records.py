"""The tables of an audit: their columns, their types and what each means.

Columns may be added, never renamed; a reader finds `SCHEMA_VERSION` in the footer of every file. Scores are
null in rows whose status is not `ok`.
"""

from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ModelInfo:
    """What the manifest records of a model.

    Attributes:
        image_shape: (channels, height, width) of its images.
        latent_shape: of the states in which growth is measured, where those are no images.
        condition: what it is conditioned on: `class`, `caption` or nothing.
        has_null: whether it knows what no condition is.
    """

    name: str
    kind: str
    image_shape: tuple[int, ...]
    hash: str
    parameters: int | None
    latent_shape: tuple[int, ...] | None = None
    condition: str | None = None
    has_null: bool = True

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Of what the flow moves: latents, or images."""
        return self.latent_shape or self.image_shape


class Status(StrEnum):
    """What became of a row. Every row of the data set has exactly one."""

    OK = "ok"
    UNDECODABLE = "undecodable"
    """the bytes are missing or no image"""
    WRONG_SHAPE = "wrong_shape"
    """an image, but not one that the model could have been trained on"""
    TOO_LARGE = "too_large"
    """more pixels than a decoder should be asked for: a decompression bomb"""
    NON_FINITE = "non_finite"
    """the measurement gave NaN or infinity"""
    WRONG_CONDITION = "wrong_condition"
    """a class or caption that the model cannot be given"""
    CRASHED = "crashed"
    """scoring the row ended its process"""


class Mark(StrEnum):
    """Why a score should not be taken at face value. A row may carry several."""

    ABOVE_CEILING = "above_ceiling"
    """growth that no exact denoiser can have (see `volgrowth.numerics.growth`): network error"""
    SIGN_FLIP = "sign_flip"
    """a step reversed a tangent: it is too long for the curvature there"""
    CAPTION_CUT = "caption_cut"
    """the model sees only the beginning of the caption"""


def _field(name: str, type_: pa.DataType, meaning: str) -> pa.Field:
    return pa.field(name, type_, metadata={"meaning": meaning})


SCORES = pa.schema(
    [
        _field("row", pa.int64(), "position in the frozen order, unique"),
        _field("image_id", pa.string(), "the user's column, else sha256: of the encoded bytes"),
        _field("source", pa.string(), "where the image came from: file, and row in it"),
        _field("status", pa.string(), "ok, or what went wrong"),
        _field("error", pa.string(), "the reason when status is not ok"),
        _field("growth", pa.float64(), "the preset's headline, raw"),
        _field("growth_error", pa.float64(), "standard error of growth over its probes; null with one probe"),
        _field("growth_unconditional", pa.float64(), "growth without the condition; null where none was given"),
        _field("growth_guided", pa.float64(), "growth of the flow with guidance; null without a guidance scale"),
        _field("growth_contrast", pa.float64(), "growth - growth_unconditional: what the caption or class adds"),
        _field("rates", pa.list_(pa.float32()), "growth per noise level, in the order of the manifest"),
        _field("loss", pa.float64(), "denoising loss: mean squared error of the predicted noise"),
        _field("lid", pa.float64(), "FLIPD estimate of the local intrinsic dimension, mean over the headline's levels"),
        _field("noise_norm", pa.float64(), "length of the expected noise at the image, mean over those levels"),
        _field("sharpness", pa.float64(), "curvature of the log density around the image, mean over those levels"),
        _field("screen", pa.float64(), "of a cascade: growth at the image itself, one level, one probe; else null"),
        _field("log_likelihood", pa.float64(), "log density at the smallest level, nats (preset volume)"),
        _field("tokens_cut", pa.int32(), "tokens of the caption that the model does not see; null without captions"),
        _field("marks", pa.list_(pa.string()), "why the score should not be taken at face value"),
        _field("png_bytes", pa.int32(), "size of the model's view of the image as PNG"),
        _field("variance", pa.float32(), "of the pixels in [-1, 1]"),
        _field("total_variation", pa.float32(), "mean absolute difference of neighbouring pixels"),
        _field("mean", pa.float32(), "of the pixels in [-1, 1]"),
        _field("edge_density", pa.float32(), "share of neighbouring pixels that differ by more than 0.2"),
        _field("phash", pa.uint64(), "perceptual hash, for near duplicates"),
        _field("content_hash", pa.uint64(), "hash of the pixels the model sees, for exact duplicates"),
        _field("nfe", pa.int32(), "network evaluations spent on the row"),
        _field("batch", pa.int32(), "micro-batch size the row was scored with"),
    ]
)

FINDINGS = pa.schema(
    [
        _field("row", pa.int64(), "position in the frozen order, unique"),
        _field("image_id", pa.string(), "as in scores"),
        _field("growth", pa.float64(), "as in scores"),
        _field("expected_growth", pa.float64(), "what an image of this complexity shows anyway"),
        _field("excess_growth", pa.float64(), "growth - expected_growth"),
        _field(
            "p_value",
            pa.float64(),
            "against held-out images, else of an assumed tail; 1 where outside_range, or screened out",
        ),
        _field("q_value", pa.float64(), "Benjamini-Hochberg adjusted p_value"),
        _field("memorized", pa.bool_(), "flagged by curvature: q_value within the rate"),
        _field("precursor", pa.bool_(), "flagged by denoising loss: loss_q_value within the rate"),
        _field("cluster", pa.int64(), "smallest row of the group of near duplicates, identical images among them"),
        _field("copies", pa.int32(), "rows in that group"),
        _field("identical", pa.int64(), "smallest row with the same pixels: one distinct image, which is tested once"),
        _field("outside_range", pa.bool_(), "a regressor is beyond all images of the calibration: not judged"),
        _field("excess_loss", pa.float64(), "loss - expected loss; low is suspicious"),
        _field("q_value_by", pa.float64(), "Benjamini-Yekutieli adjusted p_value: holds under any dependence"),
        _field("loss_p_value", pa.float64(), "as p_value, of a loss so low"),
        _field("loss_q_value", pa.float64(), "Benjamini-Hochberg adjusted loss_p_value"),
        _field("loss_q_value_by", pa.float64(), "Benjamini-Yekutieli adjusted loss_p_value"),
        _field("verified_hits", pa.int32(), "samples that reproduced the image; null until verified"),
    ]
)

SAMPLES = pa.schema(
    [
        _field("number", pa.int64(), "of the sample, which with the audit's seed decides its noise"),
        _field("nearest_row", pa.int64(), "first row of the nearest audited image, where that is nearest"),
        _field("nearest_holdout_row", pa.int64(), "the same of the held-out set"),
        _field("distance", pa.float64(), "Euclidean, for pixels in [-1, 1]"),
        _field("ratio", pa.float64(), "distance over the mean distance to the 50 nearest images"),
        _field("hit", pa.bool_(), "whether the ratio is so small that the sample is a copy"),
    ]
)

RETURNS = pa.schema(
    [
        _field("row", pa.int64(), "the image that was noised and decoded"),
        _field("flagged", pa.bool_(), "or a control of the same complexity"),
        _field("matched_row", pa.int64(), "its control, or what it is the control of"),
        _field("noise_level", pa.float64(), "to which it was noised"),
        _field("draws", pa.int32(), "noises"),
        _field("returned", pa.int32(), "how many of them were decoded into the image again"),
    ]
)
