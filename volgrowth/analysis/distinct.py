"""What counts as one image: one rule for copies, near duplicates, captions, classes and formats.

trial    rows with the same pixels and the same score. Copies have one score and are one trial; the same pixels under
         another caption or class have another score and are a trial of their own. The first row of a trial stands for
         it, and a cascade measures no other.
picture  the rows of one cluster (`duplicates`): an image with its copies, under all its captions, and its near
         duplicates, such as the same image in another format. A picture is one test, one discovery, one count, one
         card; every number of images that an audit gives is one of pictures.

A picture is as suspicious as its strongest trial, and pays for having had k of them: with p_(1) <= ... <= p_(k), the
p-values of its trials within the calibration's range, its own is that of Simes (Biometrika 73, 1986),

    p = min over i of k p_(i) / i

which is at most Bonferroni's k p_(1), and no more than the largest where all trials are alike. It is valid for trials
that are independent, as unlike images are that a hash put into one picture, and for positively dependent ones, as near
duplicates and captions of one image are. Benjamini-Hochberg over such p-values keeps the rate among pictures
(Benjamini and Heller, Biometrics 64, 2008). tests/analysis/test_distinct.py simulates both, and what happens if trials
are not paid for.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

_ALIKE = 13
"""Bits of a score that count: one in 8,000 is less than captions change, and more than arithmetic does in a batch."""


@dataclass(frozen=True)
class Pictures:
    """The pictures and trials of n scored rows.

    Attributes:
        picture: number of each row's picture, from 0, (n,).
        trial: number of each row's trial, from 0, (n,).
        first: first row of each trial, (trials,).
    """

    picture: np.ndarray
    trial: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, cluster: np.ndarray, content: np.ndarray, score: np.ndarray) -> "Pictures":
        """Number the pictures and trials of rows with these clusters, hashes of pixels and scores, (n,) each."""
        alike = rounded(score)
        order = np.lexsort((alike, content))
        begins = np.ones(len(order), bool)
        begins[1:] = (content[order[1:]] != content[order[:-1]]) | (alike[order[1:]] != alike[order[:-1]])
        trial = np.empty(len(order), np.int64)
        trial[order] = np.cumsum(begins) - 1
        return cls(np.unique(cluster, return_inverse=True)[1], trial, order[begins])

    @property
    def count(self) -> int:
        """Number of pictures."""
        return int(self.picture.max(initial=-1)) + 1

    def tried(self, judged: np.ndarray) -> np.ndarray:
        """Return the first rows of the trials in the mask `judged` (n,), those whose p-values count."""
        return self.first[judged[self.first]]

    def trials(self, judged: np.ndarray) -> np.ndarray:
        """Return the number of trials of each row's picture that are in the mask `judged` (n,), (n,)."""
        return np.bincount(self.picture[self.tried(judged)], minlength=self.count)[self.picture]

    def p_values(self, p_value: np.ndarray, judged: np.ndarray) -> np.ndarray:
        """Return the p-value of each row's picture, (n,); 1 for a picture that is not judged.

        Args:
            p_value: of each row, (n,).
            judged: mask of the rows whose p-values count, (n,).
        """
        tried = self.tried(judged)
        return simes(p_value[tried], self.picture[tried], self.count)[self.picture]

    def smallest(self, values: np.ndarray, judged: np.ndarray) -> np.ndarray:
        """Return the smallest value of each picture's judged trials, (pictures,); infinity for one without any."""
        tried = self.tried(judged)
        smallest = np.full(self.count, np.inf)
        np.minimum.at(smallest, self.picture[tried], values[tried])
        return smallest


def rounded(score: np.ndarray) -> np.ndarray:
    """Return scores rounded to the bits that count, (n,): rows of one image with equal rounded scores are one trial."""
    mantissa, exponent = np.frexp(score)
    return np.ldexp(np.round(np.ldexp(mantissa, _ALIKE)), exponent) + 0.0  # no negative zero


def simes(p_value: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """Combine p-values (n,) of the groups numbered in `group` (n,), by Simes; return (groups,), 1 for an empty one."""
    order = np.lexsort((p_value, group))
    size = np.bincount(group, minlength=groups)
    rank = np.arange(1, len(order) + 1) - (np.cumsum(size) - size)[group[order]]
    combined = np.ones(groups)
    np.minimum.at(combined, group[order], p_value[order] * size[group[order]] / rank)
    return combined


def strongest_rows(findings: pa.Table) -> np.ndarray:
    """Return a mask of the rows that stand for their pictures, (rows,) bool; `findings` as in `records.FINDINGS`.

    That is the judged row of smallest p-value, and of these the one of most evidence; in a picture without a judged
    row the row of most evidence, else of most growth, else the first.
    """
    p_value = _column(findings, "p_value", 2.0)
    judged = np.isfinite(_column(findings, "q_value", np.nan)) & ~_column(findings, "outside_range", True).astype(bool)
    state = np.select([judged, p_value <= 1], [0, 1], 2)
    evidence, growth = _column(findings, "evidence", -np.inf), _column(findings, "growth", -np.inf)
    order = np.lexsort((findings["row"].to_numpy(), -growth, -evidence, np.where(judged, p_value, 0), state))
    _, first = np.unique(findings["cluster"].to_numpy()[order], return_index=True)
    mask = np.zeros(len(order), bool)
    mask[order[first]] = True
    return mask


def _column(findings: pa.Table, name: str, missing: float) -> np.ndarray:
    """Return a column with a value for nulls; all of them in findings of a version that did not write it."""
    if name not in findings.column_names:
        return np.full(len(findings), missing)
    return findings[name].fill_null(missing).to_numpy()


def first_of_each(values: np.ndarray) -> np.ndarray:
    """Return the sorted positions at which each value stands for the first time."""
    return np.sort(np.unique(values, return_index=True)[1])


def identical_rows(scores: pa.Table) -> np.ndarray:
    """Return for each row the smallest row with the same pixels, (rows,); for a row without an image, itself."""
    return group_names(scores["row"].to_numpy(), number_images(scores)[0])[0]


def number_images(scores: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Number the images of different pixels in a table of scores.

    Returns:
        The number of each row's image, (rows,), and the position of each image's first row, (images,). Images are in
        the order of their content hashes; rows without an image follow, with a number each.
    """
    hashes = scores["content_hash"]
    known = hashes.is_valid().to_numpy()
    there, missing = np.flatnonzero(known), np.flatnonzero(~known)
    _, first, inverse = np.unique(hashes.drop_null().to_numpy(), return_index=True, return_inverse=True)
    image = np.empty(len(known), np.int64)
    image[there], image[missing] = inverse, len(first) + np.arange(len(missing))
    return image, np.concatenate([there[first], missing])


def group_names(row: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each row the smallest row of its group, (rows,), and the size of the group, (rows,).

    Args:
        row: numbers of the rows, (rows,).
        group: number of each row's group, (rows,).
    """
    smallest = np.full(group.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(smallest, group, row)
    return smallest[group], np.bincount(group)[group]
