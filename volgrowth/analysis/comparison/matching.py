"""Two finished audits, image by image: check that they can be compared, and match their images by content."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from volgrowth.analysis.calibration.error_rates import FDR
from volgrowth.analysis.calibration.expected_scores import MIN_IMAGES
from volgrowth.analysis.distinct import first_of_each
from volgrowth.analysis.findings import check_columns
from volgrowth.analysis.judging import judge
from volgrowth.audit.output.result import Audit
from volgrowth.errors import OutputError, UsageError

# settings of a measure that change how often it is repeated, not what is measured
REPEATS = frozenset({"num_probes", "num_noises"})


@dataclass(frozen=True)
class Distinct:
    """The n images of different pixels of an audit, as arrays (n,).

    Attributes:
        content: hash of each image's pixels, uint64.
        image_id: id of the row that stands for the image.
        row: that row: the first with a score, under whatever caption.
        cluster: smallest row of the image's picture (`analysis.distinct`), whose images are one test.
        copies: number of rows of the image.
        z: excess growth in units of the audit's residual spread; NaN without a score.
        outside: mask of the images that are not judged.
        flagged: mask of the images that the audit flags, or that its samples reproduced.
    """

    content: np.ndarray
    image_id: np.ndarray
    row: np.ndarray
    cluster: np.ndarray
    copies: np.ndarray
    z: np.ndarray
    outside: np.ndarray
    flagged: np.ndarray

    def __len__(self) -> int:
        return len(self.content)

    def __getitem__(self, chosen: np.ndarray) -> "Distinct":
        return Distinct(**{name: column[chosen] for name, column in vars(self).items()})


@dataclass(frozen=True)
class Matched:
    """The images of two audits, matched.

    Attributes:
        a, b: the images in both audits, in the same order.
        held_a, held_b: the held-out images that both calibrated and neither audits, in the same order.
        only: number of pictures only in A, and only in B.
        only_flagged: number of those that their audit flags.
        held_sizes: number of distinct held-out images of A, and of B.
        draws_moved: see `_draws_moved`.
    """

    a: Distinct
    b: Distinct
    held_a: Distinct
    held_b: Distinct
    only: tuple[int, int]
    only_flagged: tuple[int, int]
    held_sizes: tuple[int, int]
    draws_moved: bool


def check_comparable(a: Audit, b: Audit, fdr: float) -> None:
    """Check that two audits can be compared, before their images are matched.

    Raises:
        UsageError: they cannot be compared, or the rate `fdr` is not between 0 and 1.
    """
    if not 0 < fdr < 1:
        raise UsageError(f"rate of false discoveries {fdr:g}: expected above 0 and below 1, such as {FDR:g}")
    measures = [{k: v for k, v in audit.manifest["config"]["measure"].items() if k not in REPEATS} for audit in (a, b)]
    for name in ("preset", *sorted({*measures[0], *measures[1]})):
        before, after = (measure.get(name) for measure in measures)
        if before != after:
            raise UsageError(
                f"the audits measured different things ({name} was {before!r} in {a.store.url} and {after!r} in "
                f"{b.store.url}): audit one of them again with the other's settings"
            )
    shapes = ["x".join(map(str, audit.manifest["model"]["image_shape"])) for audit in (a, b)]
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"the models see images of different shapes ({shapes[0]} in {a.store.url}, {shapes[1]} in {b.store.url}): "
            f"expected two models of the same images"
        )
    if a.frozen.digest == b.frozen.digest and a.scores.column("growth").equals(b.scores.column("growth")):
        raise UsageError(
            f"{a.store.url} and {b.store.url} are the same audit (settings, weights, rows and scores): give the "
            f"outputs of two"
        )


def match_images(a: Audit, b: Audit) -> Matched:
    """Match the images of two audits by their pixels.

    Raises:
        UsageError: there is no image in both.
        OutputError: one was not calibrated, or its tables do not fit each other.
    """
    all_a, all_b = (
        _distinct(audit, audit.scores, audit.findings, audit.summary.get("verification")) for audit in (a, b)
    )
    one, other = _common(all_a, all_b)
    if not len(one):
        raise UsageError(
            f"{a.store.url} and {b.store.url} have no image in common: expected audits of the same images, which are "
            f"matched by their pixels"
        )
    all_held = _held_out(a), _held_out(b)
    held_a, held_b = _common(*all_held)
    usable = np.isfinite(held_a.z) & np.isfinite(held_b.z)
    usable &= ~np.isin(held_a.content, np.union1d(all_a.content, all_b.content))
    return Matched(
        a=one,
        b=other,
        held_a=held_a[usable],
        held_b=held_b[usable],
        only=(len(_unmatched(all_a, one)), len(_unmatched(all_b, other))),
        only_flagged=(
            len(_unmatched(all_a[all_a.flagged], one)),
            len(_unmatched(all_b[all_b.flagged], other)),
        ),
        held_sizes=(len(all_held[0]), len(all_held[1])),
        draws_moved=_draws_moved(a, b, one, other),
    )


def _unmatched(images: Distinct, matched: Distinct) -> np.ndarray:
    """Return the clusters of images of which no image is matched."""
    return np.setdiff1d(images.cluster, matched.cluster)


def _distinct(
    audit: Audit, scores: pa.Table, findings: pa.Table, verification: dict[str, Any] | None = None
) -> Distinct:
    """Return each image once, with the values of the row that stands for it."""
    url = audit.store.url
    check_columns(findings.schema, url, "outside_range", "memorized", "identical")
    if not scores.column("row").equals(findings.column("row")):
        raise OutputError(
            f"findings in {url} is of other rows than scores: delete {url}/_SUCCESS and run the same `volgrowth audit` "
            f"again, which keeps the scores"
        )
    known = scores.column("content_hash").is_valid()
    content, findings = scores["content_hash"].filter(known).to_numpy(), findings.filter(known)
    _, image, copies = np.unique(findings["identical"].to_numpy(), return_inverse=True, return_counts=True)
    judgement = judge(findings, verification)
    scored = findings["growth"].is_valid().to_numpy()
    order = np.lexsort((findings["row"].to_numpy(), ~scored, image))
    chosen = np.zeros(len(order), bool)
    chosen[order[first_of_each(image[order])]] = True
    return Distinct(
        content=content[chosen],
        image_id=findings["image_id"].to_numpy()[chosen],
        row=findings["row"].to_numpy()[chosen],
        cluster=findings["cluster"].to_numpy()[chosen],
        copies=copies[image][chosen],
        z=findings["excess_growth"].to_numpy()[chosen] / _spread(audit),
        outside=~judgement.judged[chosen],
        flagged=judgement.found[chosen],
    )


def _held_out(audit: Audit) -> Distinct:
    """Return the distinct held-out images, of which there may be none."""
    if audit.holdout_scores is None or audit.holdout_findings is None:
        return Distinct(*[np.empty(0)] * 8)
    return _distinct(audit, audit.holdout_scores, audit.holdout_findings)


def _spread(audit: Audit) -> float:
    calibration = audit.summary["calibration"]
    if calibration is None:
        raise OutputError(
            f"the audit in {audit.store.url} is not calibrated, which takes {MIN_IMAGES} distinct images with a score: "
            f"audit again with --holdout, or with more images"
        )
    if not calibration["residual_spread"] > 0:
        raise OutputError(
            f"growth does not vary among the images of {audit.store.url} (residual spread "
            f"{calibration['residual_spread']:g}), so that changes have no unit: audit again with a trained model"
        )
    return calibration["residual_spread"]


def _common(one: Distinct, other: Distinct) -> tuple[Distinct, Distinct]:
    """Return the images in both, in the same order."""
    _, first, second = np.intersect1d(one.content, other.content, assume_unique=True, return_indices=True)
    return one[first], other[second]


def _draws_moved(a: Audit, b: Audit, one: Distinct, other: Distinct) -> bool:
    """Return True if audited images moved to other rows, and with that to other random draws.

    Preset `paper` draws axes by row, and the other presets draw the same for all rows. The change of an image that
    moved to another row is noisier than that of a held-out image whose row stayed: the two must not be compared.
    """
    configs = [audit.manifest["config"] for audit in (a, b)]
    by_row = configs[0]["measure"]["preset"] == "paper" and configs[0]["seed"] == configs[1]["seed"]
    return by_row and bool((one.row != other.row).any())
