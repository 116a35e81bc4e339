"""Tables as an audit leaves them, from rows that say only what matters."""

from typing import Any

import numpy as np
import pyarrow as pa

from volgrowth.audit.output.manifest import DataInfo
from volgrowth.records import SCORES
from volgrowth.sources.listing import Listing, SourceFile

PLAIN: dict[str, Any] = {
    "status": "ok",
    "growth": 10.0,
    "rates": [10.0],
    "loss": 0.1,
    "marks": [],
    "png_bytes": 200,
    "variance": 0.2,
    "total_variation": 0.3,
    "mean": 0.0,
    "edge_density": 0.4,
    "nfe": 11,
    "batch": 64,
}
# multiples of the golden ratio differ in many bits: no two rows are near duplicates
SPREAD = 0x9E3779B97F4A7C15
NO_SCORE = dict.fromkeys(("growth", "rates", "loss", "marks"))
NO_IMAGE = dict.fromkeys(
    (*NO_SCORE, "png_bytes", "variance", "total_variation", "mean", "edge_density", "content_hash", "nfe", "batch")
)


def scores(*rows: dict[str, Any]) -> pa.Table:
    """A table like `records.SCORES`; the content of a row is its own unless it says otherwise."""
    records = [
        {
            **PLAIN,
            "row": index,
            "image_id": f"image-{index}",
            "content_hash": 1000 + index,
            "phash": (index + 1) * SPREAD % 2**64,
            **row,
        }
        for index, row in enumerate(rows)
    ]
    return pa.Table.from_pylist(records, schema=SCORES)


def failed(status: str = "undecodable", **changes: Any) -> dict[str, Any]:
    """A row without an image, or, for non_finite, without a score."""
    empty = NO_SCORE if status == "non_finite" else NO_IMAGE
    return {**empty, "status": status, "error": "why", **changes}


def many(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Distinct images whose growth falls as their total variation rises."""
    random = np.random.default_rng(seed)
    return [
        {
            "growth": float(60 - 40 * tv + random.normal(0, 0.5)),
            "png_bytes": int(80 + 600 * tv),
            "total_variation": float(tv),
            "variance": float(max(tv**2, 1e-4)),  # less would be an image of one colour
            "mean": float(random.uniform(-1, 1)),
            "content_hash": int(random.integers(2**63)),
        }
        for tv in random.uniform(0, 1, count)
    ]


def data_info(name: str, split: str | None, rows: int) -> DataInfo:
    """The record in a manifest of a data set that is one Parquet file."""
    return DataInfo.of(name, split, Listing.build("parquet", [SourceFile(f"{name}.parquet", 1, rows)]))
