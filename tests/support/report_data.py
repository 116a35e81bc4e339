"""Audits that never ran: tables and a summary as a real one would leave them."""

import struct
import zlib
from typing import Any

import numpy as np
import pyarrow as pa

from volgrowth.records import FINDINGS, SCORES, Mark, Status
from volgrowth.report import Exhibit, NearestSample, ReportPage, Shown, render_report

NO_COUNTS = dict.fromkeys([s.value for s in Status], 0)


def png(pixels: np.ndarray) -> bytes:
    """An 8-bit grayscale PNG of (H, W) pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    lines = b"".join(b"\0" + line.tobytes() for line in pixels.astype(np.uint8))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def thumbnails(rows: list[int]) -> dict[int, bytes]:
    return {row: png(np.full((8, 8), row % 256)) for row in rows}


def shown(rows: list[int], **changes: Any) -> Shown:
    """Exhibits of these rows with nothing beside them, and their pictures."""
    return Shown(**{"exhibits": [Exhibit(row) for row in rows], "rows": thumbnails(rows), **changes})


def html_of(summary: dict[str, Any], tables: tuple[pa.Table, pa.Table], rows: list[int]) -> str:
    """The page that shows these rows."""
    return render_report(summary, *tables, shown(rows)).html


def record(row: int, **changes: Any) -> dict[str, Any]:
    """One row with the columns of both tables; null scores when the status says so."""
    rng = np.random.default_rng(row)
    growth, expected = rng.normal(20.0, 3.0), rng.normal(20.0, 2.0)
    scored = {
        "growth": growth,
        "rates": [growth] * 3,
        "loss": 0.05,
        "expected_growth": expected,
        "excess_growth": growth - expected,
        "png_bytes": int(rng.integers(80, 400)),
        "content_hash": row,
    }
    plain = {
        "row": row,
        "image_id": f"image-{row}",
        "source": f"train.parquet:{row}",
        "status": "ok",
        "marks": [],
        "cluster": row,
        "copies": 1,
        "identical": row,
    }
    if changes.get("status", "ok") != "ok":
        scored = {}
    return {**plain, **scored, **changes}


def tables(records: list[dict[str, Any]]) -> tuple[pa.Table, pa.Table]:
    """Scores and findings of these rows."""
    return (
        pa.Table.from_pylist(records, schema=SCORES),
        pa.Table.from_pylist(records, schema=FINDINGS),
    )


def many(rows: int) -> tuple[pa.Table, pa.Table]:
    """The same for so many rows that records would be slow."""
    rng = np.random.default_rng(0)
    growth, expected = rng.normal(20, 3, rows), rng.normal(20, 2, rows)
    columns = {
        "row": np.arange(rows),
        "image_id": [f"image-{row}" for row in range(rows)],
        "source": ["train.parquet"] * rows,
        "status": ["ok"] * rows,
        "growth": growth,
        "expected_growth": expected,
        "excess_growth": growth - expected,
        "png_bytes": rng.integers(80, 4000, rows),
        "content_hash": np.arange(rows) // 2,
        "cluster": np.arange(rows) // 2 * 2,
        "identical": np.arange(rows) // 2 * 2,
        "copies": np.full(rows, 2),
    }

    def table(schema: pa.Schema) -> pa.Table:
        arrays = [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(rows, f.type) for f in schema]
        return pa.Table.from_arrays(arrays, schema=schema)

    return table(SCORES), table(FINDINGS)


def summary(rows: int = 0, **changes: Any) -> dict[str, Any]:
    """A summary of an audit without held-out images, in which every row was scored."""
    return {
        "schema_version": 1,
        "volgrowth": "0.1.0",
        "created": "2026-11-22T01:02:03Z",
        "config_digest": "sha256:" + "4f" * 32,
        "model": {
            "name": "demo/model",
            "hash": "sha256:" + "0c" * 32,
            "kind": "UNet2DModel",
            "image_shape": [1, 8, 8],
            "parameters": 402_113,
            "dtype": "float32",
        },
        "data": {"name": "digits", "split": "train", "rows": rows, "fingerprint": "sha256:" + "ab" * 32},
        "holdout": None,
        "measure": {
            "preset": "standard",
            "evaluations": 15,
            "levels": [0.16, 0.27, 0.45],
        },
        "counts": {**NO_COUNTS, "rows": rows, "ok": rows},
        "marks": dict.fromkeys([m.value for m in Mark], 0),
        "calibration": None,
        "detection": None,
        "duplicates": {"clusters": 0, "rows_in_clusters": 0, "identical_rows": 0, "largest": 0},
        "run": {**RUN, "evaluations": 11 * rows},
        "versions": {"python": "3.11.9", "torch": "2.13.0", "ray": "2.60.0"},
        **changes,
    }


RUN = {
    "seconds": 61.2,
    "device_hours": 0.034,
    "workers": 2,
    "device": "cpu",
    "images_per_second": 41.0,
    "decode_share": 0.01,
    "device_share": 0.7,
    "lost_workers": 1,
    "retries": 2,
    "runs": 1,
    "noise_floor": {"rows": 16, "batch": 7.6e-06, "dtype": None},
}

CALIBRATION = {
    "method": "cross-fitted",
    "features": ["png_bytes", "variance", "total_variation", "mean", "edge_density"],
    "rows": 2190,
    "shared": 0,
    "r2": 0.83,
    "residual_spread": 1.91,
    "outside_range": 4,
    "evidence": {"parts": {"loss": {}, "noise_norm": {}}, "left_out": {"growth": "the others tell more without it"}},
}
DETECTION = {
    "fdr": 0.1,
    "null": "held-out",
    "method": "benjamini-hochberg",
    "memorized_any_dependence": 1,
    "tests": 300,
    "fewest_flags": 2,
    "memorized": 2,
    "memorized_duplicated": 1,
    "memorized_intrinsic": 1,
    "memorized_rows": 2,
    "precursors": 1,
    "calibration_rows": 400,
    "expected_false": 0.2,
    "warnings": [],
}
TRUTH = {
    "samples": 4000,
    "sampler": "DDIM, 50 steps",
    "flagged": 2,
    "flagged_reproduced": 1,
    "precision_interval": [0.013, 0.987],
    "unhit_rows": [3],
    "warnings": [],
    "returns": {"images": 2, "draws": 4, "levels": [0.5, 1, 2], "flagged": [1.0, 0.6, 0.2], "controls": [0.4, 0, 0]},
    "reproduced_images": 1,
    "rows": [1, 2],
    "raw": {"auroc": 0.891, "tpr_at_1_fpr": 0.07},
    "calibrated": {"auroc": 0.996, "tpr_at_1_fpr": 0.93},
    "rule": "distance to the nearest training image under 0.4 of the mean to its 50 nearest, twice",
}


def full_report(**changes: Any) -> ReportPage:
    """Everything the page can have."""
    rows = 60
    flags = {"p_value": 0.01, "q_value": 0.05, "memorized": True, "precursor": True, "verified_hits": 0}
    records = [record(k, **(flags if k < 3 else {}), marks=["sign_flip"] if k == 4 else []) for k in range(rows)]
    held = [record(1000 + k) for k in range(50)]
    for each in (*records, *held):
        parts = {"evidence_loss": each["excess_growth"] / 2, "evidence_noise_norm": 0.1}
        each |= {"evidence": each["excess_growth"] / 3, **parts}
    records[0] |= {"verified_hits": 7, "cluster": 0, "copies": 2}
    records[10] |= {"cluster": 0, "copies": 2}
    records += [record(rows + k, status="undecodable", error="cannot identify image") for k in range(30)]
    records += [record(rows + 30, status="crashed", error="worker died")]
    scores, findings = tables(records)
    holdout = pa.Table.from_pylist(held, schema=FINDINGS)
    everything = summary(
        len(records),
        counts={**NO_COUNTS, "rows": rows + 31, "ok": rows, "undecodable": 30, "crashed": 1},
        calibration=CALIBRATION,
        detection={**DETECTION, "warnings": ["few held-out images"]},
        verification=TRUTH,
        holdout={"name": "held", "split": "test", "rows": 50, "fingerprint": "sha256:00"},
    )
    exhibits = [Exhibit(0, (10,), 20, NearestSample(5, 0.25, True)), Exhibit(1, (), 21), *map(Exhibit, range(2, 40))]
    visitors = {"exhibits": exhibits, "rows": thumbnails(list(range(40))), "samples": thumbnails([5])}
    return render_report(everything, scores, findings, Shown(**{**visitors, **changes}), holdout)
