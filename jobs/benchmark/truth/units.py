"""What units and weights of the parts of the evidence are worth, step by step as they were changed.

A part's unit was the spread of the held-out images' excess, then that of its tail where it is larger; then the noise
norm came to count half. The parts are those of preset `screen`, measured as an audit measures them. The evidence is
their sum by each rule, and p-values and q-values are those of an audit of one row an image.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jobs.benchmark.detection.audited_presets import DRAWS, analysis_code, fingerprint
from jobs.benchmark.detection.compared_scores import Preset
from jobs.benchmark.detection.part_sums import PartExcess
from jobs.benchmark.detection.subjects import Columns, Subject, keep_derived, measure_shared
from volgrowth.analysis.calibration.evidence import weight_of
from volgrowth.analysis.calibration.expected_scores import ScoredImages
from volgrowth.analysis.judging import is_flagged
from volgrowth.analysis.parts.judge import part_score
from volgrowth.analysis.ranking import auroc
from volgrowth.config import ScreenMeasure

PARTS = {"noise_norm": "noise norm", "loss": "loss"}
RULES = {"spread": "by the spread", "tail": "by the tail", "half": "by the tail, half of the noise norm"}


def unit_row(subject: Subject) -> dict[str, Any]:
    """Return one row of the page: what the evidence finds on a model by each rule, means over draws of the noise.

    Raises:
        NotMeasuredError: the preset was not measured, and only cached measurements are asked for.
    """
    draws = [_by_rules(subject, draw) for draw in range(DRAWS)]
    positive, clear = subject.positive, subject.positive | ~subject.planted
    row: dict[str, Any] = {"case": subject.trained.setup.name, "seed": subject.trained.seed}
    for part, label in PARTS.items():
        row[f"{label}: unit in spreads"] = f"{np.mean([draw[f'{part} unit'] for draw in draws]):.2f}"
    for rule, label in RULES.items():
        evidence, q_value = ([draw[f"{name} by {rule}"] for draw in draws] for name in ("evidence", "q_value"))
        flagged = [is_flagged(each) for each in q_value]
        found = {
            "AUROC": [auroc(each[clear], positive[clear]) for each in evidence],
            "power at 10%": [each[positive].mean() for each in flagged],
            "FDR at 10%": [(each & clear & ~positive).sum() / max(each.sum(), 1) for each in flagged],
        }
        for name, values in found.items():
            row[f"{label}: {name}"] = f"{np.mean(values):.4f}" if name == "AUROC" else f"{np.mean(values):.2f}"
    return row


def _by_rules(subject: Subject, draw: int) -> Columns:
    """Return evidence and q-value of each family by each rule, and each part's unit by the tail in spreads."""
    columns = measure_shared(subject, Preset(ScreenMeasure(), "growth"), draw)

    def derive() -> Columns:
        return judge_by_rules({part: subject.images(part_score(part, columns[part])) for part in PARTS})

    wanted = {part: columns[part] for part in PARTS}
    return keep_derived(subject, f"rules of {fingerprint(wanted)} by {analysis_code()}", derive)


def judge_by_rules(parts: Mapping[str, tuple[ScoredImages, ScoredImages]]) -> Columns:
    """Judge images by held-out ones, by each rule.

    Args:
        parts: the audited (n) and the held-out images with each score, by the part's name.

    Returns:
        `evidence by RULE` and `q_value by RULE`, (n,), and `PART unit`, a number.
    """
    excess = PartExcess.of(parts)
    found = {f"{name} unit": np.array(excess.tail[name] / excess.spread[name]) for name in parts}
    by_spread, by_tail = ({name: 1 / unit for name, unit in of.items()} for of in (excess.spread, excess.tail))
    half = {name: weight_of(name) * weight for name, weight in by_tail.items()}
    for rule, weights in zip(RULES, (by_spread, by_tail, half), strict=True):
        found[f"evidence by {rule}"], found[f"q_value by {rule}"] = excess.judged(weights)
    return found
