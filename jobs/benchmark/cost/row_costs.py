"""What a row costs beside its network: decoding and features, as they are now and as they were.

The size as PNG is measured by the entropy of steps in place of a file that is written (`sources.pixels.features`). So
it is shown too that it explains the parts of evidence as well, on the models of the bench, and that both sizes order
patches of photographs alike.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from scipy.stats import spearmanr
from sklearn.datasets import load_sample_images

from jobs.benchmark.detection.audited_presets import evidence_of, score_table
from jobs.benchmark.detection.compared_scores import Preset
from jobs.benchmark.detection.subjects import NotMeasuredError, Subject, measure_shared
from jobs.benchmark.detection.suite import Setup, is_trained, train_or_load
from jobs.experiments import Outcome, say
from volgrowth.analysis.findings import analyse
from volgrowth.analysis.ranking import auroc, tpr_at_fpr
from volgrowth.audit.scoring.prefetch import AT_ONCE
from volgrowth.config import StandardMeasure
from volgrowth.sources import PNG_METHOD, bytes_hash, decode_image, features, features_of_each

METHODS = {"file": 1, "entropy": PNG_METHOD}
KINDS = ((32, "PNG"), (512, "JPEG"))
ROUNDS, ROUND_SECONDS = 7, 0.2
PATCHES, SIDES = 500, (16, 32, 64, 128)


def measure_row_costs(setups: Sequence[Setup], seeds: Sequence[int], data: Path, models: Path) -> Outcome:
    """Measure costs, and what both sizes explain on those models of the bench that earlier runs left in `models`."""
    costs = list(row_costs())
    explained = [row for setup in setups for seed in seeds for row in _explained(setup, seed, data, models)]
    said = [
        f"{row['image']}: {row['whole row, us']:,.0f} us of CPU time a row beside the network, decoding included"
        for row in costs
    ]
    if explained:
        file, entropy = (np.mean([row[f"R² by {name}"] for row in explained]) for name in METHODS)
        said.append(
            f"The parts of evidence are explained to {file:.3f} by sizes of files, to {entropy:.3f} by entropy."
        )
    return Outcome(
        said, {"costs": costs, "models": explained, "photographs": list(_photographs())}, {"rows at once": AT_ONCE}
    )


def row_costs() -> Iterator[dict[str, Any]]:
    """Yield the microseconds of CPU time of each step, for a small and a large image of a photograph."""
    for side, kind in KINDS:
        stream = BytesIO()
        Image.fromarray(_photos()[0]).crop((0, 0, 427, 427)).resize((side, side)).save(stream, kind)
        yield {"image": f"{kind} of {side} x {side}", **_steps(stream.getvalue(), (3, side, side))}


def _steps(file: bytes, shape: tuple[int, int, int]) -> dict[str, float]:
    images = [decode_image(file, shape, 10**8)] * AT_ONCE
    decoding = microseconds(lambda: (decode_image(file, shape, 10**8), bytes_hash(file)))
    batch = microseconds(lambda: features_of_each(images)) / AT_ONCE
    return {
        "decoding, us": decoding,
        "features, us": batch,
        "one at a time, us": microseconds(lambda: features(images[0])),
        "one at a time with a file, us": microseconds(lambda: features(images[0], 1)),
        "whole row, us": decoding + batch,
    }


def microseconds(work: Callable[[], object]) -> float:
    """Return the CPU time of a call, the least of several rounds."""
    began = time.process_time()
    work()
    calls = max(1, int(ROUND_SECONDS / max(time.process_time() - began, 1e-6)))
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(calls):
            work()
        rounds.append((time.process_time() - began) / calls)
    return 1e6 * min(rounds)


def _explained(setup: Setup, seed: int, data: Path, models: Path) -> Iterator[dict[str, Any]]:
    """Yield what calibration and evidence of preset standard are by both sizes, on a model that is cached."""
    if not is_trained(setup, seed, data, models):
        return
    subject = Subject.of(train_or_load(setup, seed, data, models, say), cached_only=True)
    try:
        columns = measure_shared(subject, Preset(StandardMeasure(), "growth"), 0)
    except NotMeasuredError:
        return
    row: dict[str, Any] = {"case": setup.name, "seed": seed}
    for name, method in METHODS.items():
        described = [each["png_bytes"] for each in features_of_each(list(subject.pixels), method)]
        place = subject.described.schema.get_field_index("png_bytes")
        sized = subject.described.set_column(place, "png_bytes", pa.array(described, pa.int32()))
        table, families = score_table(replace(subject, described=sized), columns), len(subject.positive)
        found = analyse(table[:families], table[families:])
        assert found.calibration is not None  # every case holds out hundreds of images
        clear = subject.positive | ~subject.planted
        evidence, positive = evidence_of(found, table[:families])[clear], subject.positive[clear]
        row[f"R² by {name}"] = float(np.mean([score.r2 for score in found.calibration.scores.values()]))
        row[f"AUROC by {name}"] = f"{auroc(evidence, positive):.4f}"
        row[f"TPR by {name}"] = f"{tpr_at_fpr(evidence, positive):.3f}"
    yield row


def _photographs() -> Iterator[dict[str, Any]]:
    """Yield the rank correlation of both sizes over random patches of scikit-learn's two photographs."""
    random = np.random.default_rng(0)
    for side in SIDES:
        patches = []
        for number in range(PATCHES):
            photo = _photos()[number % 2]
            top, left = (int(random.integers(0, size - side)) for size in photo.shape[:2])
            patches.append(np.ascontiguousarray(photo[top : top + side, left : left + side].transpose(2, 0, 1)))
        file, entropy = (
            [each["png_bytes"] for each in features_of_each(patches, method)] for method in METHODS.values()
        )
        yield {"side": side, "patches": PATCHES, "rank correlation": f"{spearmanr(file, entropy).statistic:.4f}"}


def _photos() -> list[np.ndarray]:
    return list(load_sample_images().images)
