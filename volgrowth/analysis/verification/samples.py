"""Samples of the model and the images near to them: which images are compared, and the table of samples."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.records import SAMPLES

# from distances of uint8 pixels to those of pixels in [-1, 1]
PIXEL_SCALE = 127.5


@dataclass(frozen=True)
class ImageNumbers:
    """The numbers of the distinct images of some rows, by which samples are compared with them.

    Attributes:
        first: mask of the rows that stand for an image: no copies of an earlier row, (rows,) bool.
        offset: number of the image of row 0.
    """

    first: np.ndarray
    offset: int = 0

    @property
    def count(self) -> int:
        """Number of the images."""
        return int(self.first.sum())

    def of(self, start: int, stop: int) -> np.ndarray:
        """Return the numbers of the rows from `start` up to `stop`; -1 for a row that stands for no image."""
        return np.where(self.first[start:stop], self.offset + np.arange(start, stop), -1)


def search_groups(
    audited: Iterable[pa.Table], rows: int, held: pa.Table | None = None
) -> tuple[ImageNumbers, ImageNumbers]:
    """Number the distinct images that samples are compared with.

    Audited images have the number of their first row; held-out images are numbered after all audited rows. Held-out
    images that are audited as well are left out, because they can be memorized.

    Args:
        audited: all audited rows in order, some at a time, with the columns row, identical and content_hash.
        rows: number of the audited rows.
        held: the held-out rows with the same columns; None without any.

    Returns:
        The numbers of the audited and of the held-out images. A row without an image has none.
    """
    hashes = pa.array([], pa.uint64()) if held is None else held["content_hash"].drop_null().unique()
    first, shared = np.zeros(rows, bool), [pa.array([], pa.uint64())]
    for part in audited:
        content = part["content_hash"]
        first[part["row"].to_numpy()] = _stands(part)
        shared.append(content.filter(pc.is_in(content, value_set=hashes)).drop_null().unique())
    if held is None:
        return ImageNumbers(first), ImageNumbers(np.empty(0, bool), rows)
    new = pc.invert(pc.is_in(held["content_hash"], value_set=pa.concat_arrays(shared)))
    return ImageNumbers(first), ImageNumbers(_stands(held) & new.to_numpy(), rows)


def _stands(rows: pa.Table) -> np.ndarray:
    """Return a mask of the rows that stand for an image."""
    return rows["content_hash"].is_valid().to_numpy() & (rows["identical"].to_numpy() == rows["row"].to_numpy())


def samples_table(distance: np.ndarray, nearest: np.ndarray, hit: np.ndarray, rows: int) -> pa.Table:
    """Describe each sample by its nearest image, audited or held out, and whether it is a copy.

    Args:
        distance: distances to the nearest groups, for uint8 pixels or for looks, (samples, k), rising; infinite beyond
            the last, and for a sample that can be near to nothing.
        nearest: the nearest group of each sample, (samples,), -1 for none.
        hit: the group that each sample hits, (samples,), -1 for none.
        rows: audited rows, after which groups are held-out ones.

    Returns:
        A table with the columns of `records.SAMPLES`, one row per sample.
    """
    held, none = nearest >= rows, nearest < 0
    finite = np.where(np.isfinite(distance), distance, np.nan)
    finite[none] = 0  # a sample that is near to nothing has no mean
    columns = {
        "number": pa.array(np.arange(len(hit))),
        "nearest_row": pa.array(nearest, pa.int64(), mask=held | none),
        "nearest_holdout_row": pa.array(nearest - rows, pa.int64(), mask=~held),
        "distance": pa.array(distance[:, 0] / PIXEL_SCALE, pa.float64(), mask=none),
        "ratio": pa.array(distance[:, 0] / np.maximum(np.nanmean(finite, 1), 1e-12), pa.float64(), mask=none),
        "hit": pa.array(hit >= 0),
    }
    return pa.table(columns, schema=SAMPLES)


def count_copies(distance: np.ndarray, hit: np.ndarray) -> dict[str, float | None]:
    """Count the copies among samples, and measure how far samples are from images that they do not copy.

    Args:
        distance: as in `samples_table`.
        hit: as in `samples_table`.

    Returns:
        `copies`, and `distance`: the mean distance, for pixels in [-1, 1], to the nearest image other than the copied
        one, which grows as a sampler leaves what images look like; None if no sample is near to any.
    """
    copied = hit >= 0
    other = distance[np.arange(len(hit)), np.minimum(copied.astype(int), distance.shape[1] - 1)] / PIXEL_SCALE
    other = other[np.isfinite(other)]
    return {"copies": int(copied.sum()), "distance": float(other.mean()) if len(other) else None}
