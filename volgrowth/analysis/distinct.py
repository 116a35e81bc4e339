"""Distinct images: rows with the same pixels, and the one row that stands for each image.

Copies of an image are one test, one count and one card of the report. The first row with a score stands for the image:
its p-value decides whether the image is flagged, and a cascade measures no other row of it. The first row stands for an
image of which no row has a score. Every count of distinct images uses `first_rows`, so that they agree.
"""

import numpy as np
import pyarrow as pa


def first_rows(findings: pa.Table) -> np.ndarray:
    """Return a mask of the rows that stand for their images, (rows,) bool; `findings` as in `records.FINDINGS`."""
    scored = (findings["growth"].is_valid().to_numpy()) | (findings["p_value"].is_valid().to_numpy())
    order = np.lexsort((findings["row"].to_numpy(), ~scored))
    _, first = np.unique(findings["identical"].to_numpy()[order], return_index=True)
    mask = np.zeros(len(order), bool)
    mask[order[first]] = True
    return mask


def first_of_each(values: np.ndarray) -> np.ndarray:
    """Return the sorted positions at which each value stands for the first time."""
    return np.sort(np.unique(values, return_index=True)[1])


def identical_rows(scores: pa.Table) -> np.ndarray:
    """Return for each row the smallest row with the same pixels, (rows,); for a row without an image, itself."""
    return group_names(scores["row"].to_numpy(), number_images(scores)[0])[0]


def number_images(scores: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Number the distinct images of a table of scores.

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
