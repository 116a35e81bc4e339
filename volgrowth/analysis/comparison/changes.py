r"""Which images became or ceased to be memorized between two audits: checkpoints, or before and after curation.

Images are matched by `content_hash`, so that their rows may differ, and the pictures of A (`analysis.distinct`) are the
tests: near duplicates and copies are one, with the p-value of Simes for its matched images. Raw scores of two models
are not comparable. Each audit's excess growth is put in units of its own calibration, and an image's change is

    z = excess_growth / residual_spread        d_i = z_B,i - z_A,i

so d says how the image moved among images that were not trained on. It has no zero of its own: an image that is
memorized in both moves too where the spread of all others does.

Null. An image is unchanged where d_i is exchangeable with the changes d_j of the m held-out images that both audits
share and neither was trained on. Conformal p-values (Vovk, arXiv 1208.0806) of a rise and of a fall are

    p_rise = (1 + #{j: d_j >= d_i}) / (1 + m)        p_fall = (1 + #{j: d_j <= d_i}) / (1 + m)

With fewer than `MIN_IMAGES` of those the n judged images are their own null, mirrored at their median c,

    p_rise = (1 + #{j: d_j - c <= -(d_i - c)}) / (1 + n)        p_fall with >= likewise

which assumes that most images did not change and that the differences of those are symmetric about the median. Images
that changed the other way count as null there, which costs power, not the promise: a direction in which k images
changed is found only where fewer than about k rate / 2 went the other way.

What is promised. Benjamini-Hochberg runs over all p_rise and p_fall together, so the expected share of false ones
among the significant changes is at most the rate; a change in the wrong direction counts as false. `became` (rose,
flagged by B, not by A) and `ceased` (fell, flagged by A, not by B) are the part of those that the flags pick, and the
flags use the same z: a part may hold more than its share. What holds of it is that the false ones in it are no more
than those in the whole, about rate * significant, and that the flags keep their own audits' rate.
tests/analysis/comparison/test_changes.py::test_the_rate_is_kept_and_what_changed_is_found simulates both nulls.
"""

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
import pyarrow as pa

from volgrowth.analysis.calibration.error_rates import FDR, fewest_flags, q_values, rows_needed
from volgrowth.analysis.calibration.expected_scores import MIN_IMAGES
from volgrowth.analysis.comparison.matching import Matched, check_comparable, match_images
from volgrowth.analysis.distinct import simes
from volgrowth.analysis.policy import store_of
from volgrowth.audit.output.result import Audit
from volgrowth.errors import UsageError
from volgrowth.records import column


class ChangeVerdict(StrEnum):
    """Change of an image from audit A to audit B."""

    BECAME = "became"
    """a significant rise, flagged by B and not by A"""
    CEASED = "ceased"
    """a significant fall, flagged by A and not by B"""
    ROSE = "rose"
    """a significant rise of any other image"""
    FELL = "fell"
    """a significant fall of any other image"""
    SAME = "same"
    """no significant change, which does not prove that nothing changed"""
    NOT_JUDGED = "not_judged"
    """no score, or outside the range of complexity that was calibrated, in either audit"""


CHANGES = pa.schema(
    [
        column("cluster", pa.int64(), "smallest row of the image's cluster in A: near duplicates are one test"),
        column("content_hash", pa.uint64(), "hash of the pixels that the models see: the same in A and B"),
        column("image_id", pa.string(), "id of row_a in A"),
        column("row_a", pa.int64(), "row that stands for the image in A: the first with a score"),
        column("row_b", pa.int64(), "row that stands for the image in B"),
        column("copies_a", pa.int32(), "number of rows with these pixels in A"),
        column("copies_b", pa.int32(), "number of rows with these pixels in B"),
        column("z_a", pa.float64(), "excess growth in A, in units of its residual spread; null without a score"),
        column("z_b", pa.float64(), "excess growth in B, in units of its residual spread; null without a score"),
        column("change", pa.float64(), "z_b - z_a"),
        column("p_rise", pa.float64(), "p-value of a rise as large as this; 1 outside either calibration's range"),
        column("p_fall", pa.float64(), "p-value of a fall as large as this; 1 outside either calibration's range"),
        column("q_value", pa.float64(), "of the cluster: Benjamini-Hochberg over both directions, the smaller one"),
        column("verdict", pa.string(), "of the cluster: became, ceased, rose, fell, same or not_judged"),
    ]
)


@dataclass(frozen=True)
class Comparison:
    """Two audits compared. Counts are of pictures: an image with its copies and near duplicates in A is one.

    Attributes:
        names: URLs of A and B.
        table: one row per image in both, by row in A, with the columns of `CHANGES`.
        only: number of pictures only in A, and only in B; without a second score they cannot be judged.
        only_flagged: number of those that their audit flags.
        null: changes that count as no change: of `held-out` images, or the audited ones' own, `mirrored`.
        null_rows: number of them.
        tests: number of one-sided tests that were adjusted together.
        fdr: rate of false discoveries that is promised for all significant changes together.
        warnings: in sentences.
    """

    names: tuple[str, str]
    table: pa.Table
    only: tuple[int, int]
    only_flagged: tuple[int, int]
    null: Literal["held-out", "mirrored"]
    null_rows: int
    tests: int
    fdr: float
    warnings: tuple[str, ...]

    @property
    def counts(self) -> dict[ChangeVerdict, int]:
        """Number of pictures with each verdict."""
        found = Counter(
            dict(zip(*(self.table[name].to_pylist() for name in ("cluster", "verdict")), strict=True)).values()
        )
        return {verdict: found[verdict.value] for verdict in ChangeVerdict}

    @property
    def significant(self) -> int:
        """Number of pictures that changed either way: the set for which the rate is promised."""
        counts = self.counts
        return self.pictures - counts[ChangeVerdict.SAME] - counts[ChangeVerdict.NOT_JUDGED]

    @property
    def pictures(self) -> int:
        """Number of pictures in both."""
        return sum(self.counts.values())


def compare_audits(a: Audit, b: Audit, fdr: float = FDR) -> Comparison:
    """Compare two finished audits that measured the same quantity and have images in common.

    Args:
        a: the audit before.
        b: the audit after.
        fdr: rate of false discoveries among the significant changes, in (0, 1).

    Raises:
        UsageError: the two cannot be compared, or `fdr` is out of range.
        OutputError: one was not calibrated, or its tables do not fit each other.
    """
    check_comparable(a, b, fdr)
    images = match_images(a, b)
    change = images.b.z - images.a.z
    scored = np.isfinite(change)
    judged = scored & ~(images.a.outside | images.b.outside)
    null = None
    if len(images.held_a) >= MIN_IMAGES and not images.draws_moved:
        null = images.held_b.z - images.held_a.z
    p_value = np.where(scored, np.ones((2, 1)), np.nan)
    p_value[:, judged] = mirrored_p_values(change[judged]) if null is None else conformal_p_values(change[judged], null)
    _, picture = np.unique(images.a.cluster, return_inverse=True)
    tested = _of_pictures(scored, picture)
    combined = np.stack([simes(p[judged], picture[judged], len(tested)) for p in p_value])
    q_value = _q_values(np.where(tested, combined, np.nan))
    null_rows = int(judged.sum()) if null is None else len(null)
    verdict = _verdicts(images, picture, combined, q_value <= fdr, _of_pictures(judged, picture))
    return Comparison(
        names=(a.store.url, b.store.url),
        table=_table(images, change, p_value, q_value[picture], verdict[picture]),
        only=images.only,
        only_flagged=images.only_flagged,
        null="mirrored" if null is None else "held-out",
        null_rows=null_rows,
        tests=2 * int(tested.sum()),
        fdr=fdr,
        warnings=(
            *_about_null(images),
            *_about_size(combined[:, _of_pictures(judged, picture)], q_value, null_rows, fdr),
        ),
    )


def write_changes(comparison: Comparison, file: str) -> None:
    """Write the table of a comparison as a Parquet file, whole or not at all.

    Args:
        comparison: to be written.
        file: path or URL that ends in .parquet.

    Raises:
        UsageError: `file` does not end in .parquet.
        OutputError: the file cannot be written there.
    """
    if not file.endswith(".parquet"):
        raise UsageError(f"table {file}: expected a file name that ends in .parquet")
    store, name = store_of(file)
    about = {"a": comparison.names[0], "b": comparison.names[1], "null": comparison.null, "fdr": repr(comparison.fdr)}
    store.write_table(name, comparison.table, about)


def conformal_p_values(change: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Return p-values of a rise and of a fall, (2, n), of changes (n,) against those of m unchanged images, (m,)."""
    return np.stack([_share_beyond(change, null), _share_beyond(-change, -null)])


def mirrored_p_values(change: np.ndarray) -> np.ndarray:
    """Return p-values of a rise and of a fall, (2, n), each against the other side of the changes (n,) themselves."""
    if not len(change):
        return np.empty((2, 0))
    centred = change - np.median(change)
    return np.stack([_share_beyond(centred, -centred), _share_beyond(-centred, centred)])


def _share_beyond(value: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Return the share of the null that is at least as large as each value, the value itself counted in, (n,)."""
    beyond = len(null) - np.searchsorted(np.sort(null), value, side="left")
    return (1 + beyond) / (1 + len(null))


def _q_values(p_value: np.ndarray) -> np.ndarray:
    """Adjust p-values (2, n) over all tests of both directions; return the smaller of a picture's two, (n,), or NaN."""
    tested = np.isfinite(p_value)
    q_value = np.full(p_value.shape, np.nan)
    q_value[tested] = q_values(p_value[tested], np.arange(tested.sum()))
    return q_value.min(0)


def _of_pictures(images: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Return a mask of the pictures that have one of the masked images, (pictures,); `picture` numbers each image's."""
    return np.bincount(picture, images) > 0


def _verdicts(
    images: Matched, picture: np.ndarray, p_value: np.ndarray, significant: np.ndarray, judged: np.ndarray
) -> np.ndarray:
    """Return the verdict of each picture, (pictures,), as are the last three arguments."""
    before, after = (_of_pictures(some.flagged, picture) for some in (images.a, images.b))
    rises = significant & (p_value[0] < p_value[1])
    falls = significant & ~rises
    cases = {
        ChangeVerdict.NOT_JUDGED: ~judged,
        ChangeVerdict.BECAME: rises & after & ~before,
        ChangeVerdict.CEASED: falls & before & ~after,
        ChangeVerdict.ROSE: rises,
        ChangeVerdict.FELL: falls,
    }
    return np.select(list(cases.values()), [verdict.value for verdict in cases], ChangeVerdict.SAME.value)


def _table(
    images: Matched, change: np.ndarray, p_value: np.ndarray, q_value: np.ndarray, verdict: np.ndarray
) -> pa.Table:
    columns = {
        "cluster": images.a.cluster,
        "content_hash": images.a.content,
        "image_id": images.a.image_id,
        **{f"{name}_a": getattr(images.a, name) for name in ("row", "copies", "z")},
        **{f"{name}_b": getattr(images.b, name) for name in ("row", "copies", "z")},
        "change": change,
        "p_rise": p_value[0],
        "p_fall": p_value[1],
        "q_value": q_value,
        "verdict": verdict,
    }
    arrays = [pa.array(columns[field.name], field.type, from_pandas=True) for field in CHANGES]
    return pa.table(arrays, schema=CHANGES).sort_by("row_a")


def _about_null(images: Matched) -> list[str]:
    """Warn if the held-out images of the two audits cannot tell, or only in part, how far an unchanged image moves."""
    common, sizes = len(images.held_a), images.held_sizes
    assumed = (
        "Changes were compared with their own mirror image at the median instead, which assumes that most images did "
        "not change and that the differences of those are symmetric, and which finds little where images changed both "
        "ways."
    )
    if common < MIN_IMAGES:
        return [
            f"{common} usable held-out images are common to both audits (A has {sizes[0]}, B has {sizes[1]}), fewer "
            f"than {MIN_IMAGES}. {assumed} Audit both with the same --holdout to do without."
        ]
    if images.draws_moved:
        return [
            f"Preset paper draws its axes by row, and audited images have other rows in B than in A, which makes their "
            f"changes noisier than those of held-out ones. {assumed} Audit one of them with another seed to do without."
        ]
    if 2 * common < max(sizes):
        return [
            f"The held-out sets differ: only {common} usable images of A's {sizes[0]} and B's {sizes[1]} are in both. "
            f"Audit both with the same --holdout to compare with all."
        ]
    return []


def _about_size(p_value: np.ndarray, q_value: np.ndarray, null_rows: int, fdr: float) -> list[str]:
    """Say why no change could be significant, and what would help. `p_value` (2, judged pictures), `q_value` (n,)."""
    if not p_value.size:
        return ["No image in both could be judged: each lacks a score or is outside a calibration's range."]
    if (q_value <= fdr).any():
        return []
    smallest, tests = 1 / (1 + null_rows), 2 * int(np.isfinite(q_value).sum())
    fewest, extreme = fewest_flags(tests, 1 / (1 + null_rows), fdr), int((p_value <= smallest).sum())
    if extreme >= fewest:
        return []
    enough = rows_needed(tests, extreme, fdr)
    return [
        f"With {null_rows} images to compare with no p-value is below {smallest:.2g}, which at least {fewest} of the "
        f"{tests} tests would have to reach for any finding, and {extreme} did. With {enough} held-out images common "
        f"to both audits {max(extreme, 1)} would be enough."
    ]
