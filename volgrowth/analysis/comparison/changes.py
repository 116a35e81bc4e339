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

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import pyarrow as pa

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


CHANGED = (ChangeVerdict.BECAME, ChangeVerdict.CEASED, ChangeVerdict.ROSE, ChangeVerdict.FELL)
"""The verdicts on significant changes."""

LISTED = 20
"""Most pictures that are listed of each kind of change."""

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
        counts: number of pictures with each verdict.
        listed: of each kind of significant change up to `LISTED` pictures, the most certain first, each by the image
            that changed most, with the columns of `CHANGES`.
        only: number of pictures only in A, and only in B; without a second score they cannot be judged.
        only_flagged: number of those that their audit flags.
        null: changes that count as no change: of `held-out` images, or the audited ones' own, `mirrored`.
        null_rows: number of them.
        tests: number of one-sided tests that were adjusted together.
        fdr: rate of false discoveries that is promised for all significant changes together.
        warnings: in sentences.
    """

    names: tuple[str, str]
    counts: dict[ChangeVerdict, int]
    listed: dict[ChangeVerdict, pa.Table]
    only: tuple[int, int]
    only_flagged: tuple[int, int]
    null: Literal["held-out", "mirrored"]
    null_rows: int
    tests: int
    fdr: float
    warnings: tuple[str, ...]

    @property
    def significant(self) -> int:
        """Number of pictures that changed either way: the set for which the rate is promised."""
        return self.pictures - self.counts[ChangeVerdict.SAME] - self.counts[ChangeVerdict.NOT_JUDGED]

    @property
    def pictures(self) -> int:
        """Number of pictures in both."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class WholeComparison(Comparison):
    """A comparison with all of its images in memory.

    Attributes:
        table: one row per image in both, by row in A, with the columns of `CHANGES`.
    """

    table: pa.Table = field(default_factory=CHANGES.empty_table)
