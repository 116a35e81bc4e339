"""What the contrasts of captions mean. Each is compared with what neutral captions of its length show anyway.

The logarithm of a contrast is calibrated as the growth of images is (`calibration.expected_scores`), with the length of
the caption in the place of an image's complexity, and the neutral captions in that of held-out images. Equal captions
are one test.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow as pa

from volgrowth.analysis.calibration.error_rates import fewest_flags, q_values, rows_needed
from volgrowth.analysis.calibration.expected_scores import MIN_IMAGES, Excess, ScoredImages, learn, usable
from volgrowth.analysis.calibration.p_values import held_out_p_values
from volgrowth.analysis.calibration.tails import fit_tail
from volgrowth.errors import UsageError

NEUTRAL = "neutral_captions.txt"
"""Captions that come with the package: plain descriptions of ordinary things, which nobody wrote for one picture."""
_SMALLEST = 1e-30

FINDINGS = pa.schema(
    [
        pa.field("line", pa.int64(), metadata={"meaning": "line of the file that the caption stands in, from 1 on"}),
        pa.field("caption", pa.string(), metadata={"meaning": "the caption"}),
        pa.field("status", pa.string(), metadata={"meaning": "ok, or non_finite: the model gave no number"}),
        pa.field("score", pa.float64(), metadata={"meaning": "contrast at pure noise: how far the caption steers"}),
        pa.field("expected_score", pa.float64(), metadata={"meaning": "that of a neutral caption of its length"}),
        pa.field("p_value", pa.float64(), metadata={"meaning": "chance that a neutral caption steers so far"}),
        pa.field("q_value", pa.float64(), metadata={"meaning": "rate of false discoveries among captions up to it"}),
        pa.field("flagged", pa.bool_(), metadata={"meaning": "q_value is at most the rate"}),
        pa.field("tokens_cut", pa.int32(), metadata={"meaning": "tokens of the caption that the model does not read"}),
    ]
)


@dataclass(frozen=True)
class MeasuredCaptions:
    """Captions, their contrasts (n,), NaN where there is none, and how many of their tokens the model does not read."""

    captions: Sequence[str]
    contrast: np.ndarray
    cut: Sequence[int]


def neutral_captions() -> list[str]:
    """Return the captions that come with the package."""
    return files("volgrowth.analysis").joinpath(NEUTRAL).read_text(encoding="utf-8").splitlines()


def judge_captions(
    lines: Sequence[int], measured: MeasuredCaptions, neutral: MeasuredCaptions, shipped: bool, fdr: float
) -> tuple[pa.Table, dict[str, Any]]:
    """Calibrate captions on neutral ones, and flag those that steer the model further.

    Args:
        lines: the line of each caption.
        measured: the captions.
        neutral: the captions to compare with.
        shipped: whether the neutral captions are those of the package.
        fdr: rate of false discoveries.

    Returns:
        The findings, as `FINDINGS`, and the numbers of the summary, with `caveats`.

    Raises:
        UsageError: too few neutral captions are distinct, have a contrast and are not among the captions.
    """
    known, ours = _scored(neutral), _scored(measured)
    known = known[np.isfinite(known.score)]
    chosen = usable(known, np.isin(known.content, ours.content))
    if len(chosen.rows) < MIN_IMAGES:
        raise UsageError(
            f"{len(chosen.rows)} of {len(neutral.captions)} neutral captions could be measured and are not among the "
            f"captions: expected at least {MIN_IMAGES} distinct ones (--neutral)"
        )
    ok = np.isfinite(ours.score)
    learnt = learn(known, chosen.rows)
    expected = np.stack([predict(ours.features[ok]) for predict in learnt.predictors(int(ok.sum()))])
    tail = fit_tail(learnt.held)
    p_value = held_out_p_values(Excess(ours.score[ok] - expected, learnt.held, learnt.fold), tail).used
    q_value = q_values(p_value, ours.content[ok])
    findings = _table(lines, measured, ok, {"expected": np.exp(expected.mean(0)), "p": p_value, "q": q_value}, fdr)
    tests = len(np.unique(ours.content[ok]))
    flagged = len(np.unique(ours.content[ok][q_value <= fdr]))
    longest = known.features[chosen.rows].max(0)
    numbers = {
        "captions": len(ours.score),
        "scored": int(ok.sum()),
        "tests": tests,
        "flagged": flagged,
        "expected_false": fdr * flagged,
        "fdr": fdr,
        "neutral": len(chosen.rows),
        "neutral_shared": chosen.shared,
        "neutral_unscored": len(neutral.captions) - len(known.score),
        "tail": tail is not None,
        "longer_than_neutral": int((ours.features[ok] > longest).any(1).sum()),
        "tokens_cut": sum(count > 0 for count in measured.cut),
    }
    return findings, {**numbers, "caveats": _caveats(numbers, shipped)}


def _caveats(numbers: dict[str, Any], shipped: bool) -> list[str]:
    """Say what limits the flags."""
    neutral, tests, fdr = numbers["neutral"], numbers["tests"], numbers["fdr"]
    said = [
        "A caption alone was looked at, and no image: a flag says that the caption steers the model unusually far, as "
        "captions of memorized images do. Names and slogans that the model knows well may do so too. Samples under the "
        "caption are the proof.",
        "A caption that is not flagged is not cleared: on a small model of captions this score was hardly higher for "
        "those that reproduce an image (AUROC at most .60). Where the images are at hand, `volgrowth audit` found all.",
    ]
    if shipped:
        said.append(
            f"The captions were compared with {neutral} plain ones that come with volgrowth. The rate is promised only "
            "if yours are written like these: give captions of images that the model was not trained on (--neutral)."
        )
    few = fewest_flags(tests, 1 / (1 + neutral), fdr)
    if not numbers["tail"] and few > 1:
        said.append(
            f"With {neutral} neutral captions fewer than {few} of {tests} captions cannot be flagged at a rate of "
            f"{fdr:g}: it takes {rows_needed(tests, 1, fdr)} to flag a single one."
        )
    if numbers["tail"]:
        said.append("p-values below those that counting gives rest on the tail of the neutral captions' contrasts.")
    for count, what in (
        (numbers["longer_than_neutral"], "are longer than every neutral one, and were compared with the longest"),
        (numbers["tokens_cut"], "have more tokens than the model reads, which does not see the rest"),
        (numbers["captions"] - numbers["scored"], "have no score: the model gave numbers that are not finite"),
        (numbers["neutral_shared"], "stand among the neutral ones too, which were left out of the comparison"),
    ):
        if count:
            said.append(f"{count} of the captions {what}.")
    if numbers["neutral_unscored"]:
        said.append(f"{numbers['neutral_unscored']} of the neutral captions have no score, and calibrated nothing.")
    return said


def _scored(measured: MeasuredCaptions) -> ScoredImages:
    """Return captions as calibration takes them: the logarithm of the contrast, and how long the caption is."""
    with np.errstate(invalid="ignore"):
        score = np.log(np.maximum(measured.contrast, _SMALLEST))
    length = [[len(caption.split()), len(caption)] for caption in measured.captions]
    content = [_content(caption) for caption in measured.captions]
    return ScoredImages(np.array(length, float).reshape(-1, 2), score, np.array(content, np.uint64))


def _content(caption: str) -> int:
    """Return a hash of a caption that is the same for spellings which differ in spaces and composed letters alone."""
    text = " ".join(unicodedata.normalize("NFC", caption).split())
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _table(
    lines: Sequence[int], measured: MeasuredCaptions, ok: np.ndarray, found: dict[str, np.ndarray], fdr: float
) -> pa.Table:
    """Return the findings: `found` holds numbers of the rows of the mask `ok`."""

    def spread(values: np.ndarray) -> pa.Array:
        whole = np.full(len(ok), np.nan)
        whole[ok] = values
        return pa.array(whole, mask=~ok)

    flagged = np.zeros(len(ok), bool)
    flagged[ok] = found["q"] <= fdr
    columns = [
        pa.array(lines, pa.int64()),
        pa.array(measured.captions, pa.string()),
        pa.array(np.where(ok, "ok", "non_finite"), pa.string()),
        pa.array(np.where(ok, measured.contrast, np.nan), mask=~ok),
        spread(found["expected"]),
        spread(found["p"]),
        spread(found["q"]),
        pa.array(flagged, mask=~ok),
        pa.array(measured.cut, pa.int32()),
    ]
    return pa.table(columns, schema=FINDINGS)
