"""Samples of the model and the images near to them: which images are compared, and the table of samples."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.records import SAMPLES

# from distances of uint8 pixels to those of pixels in [-1, 1]
PIXEL_SCALE = 127.5


def search_groups(
    hashes: pa.ChunkedArray,
    identical: np.ndarray,
    holdout_hashes: pa.ChunkedArray | None = None,
    holdout_identical: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Number the distinct images that samples are compared with.

    Audited images have the number `identical`; held-out images are numbered after all audited rows. Held-out images
    that are audited as well are left out, because they can be memorized.

    Args:
        hashes: the column `content_hash` of the audited rows, uint64 with nulls.
        identical: the column `identical` of their findings, (rows,).
        holdout_hashes, holdout_identical: the same of the held-out rows, None without a held-out set.

    Returns:
        The numbers of the audited rows and of the held-out rows; -1 for a row without an image, for a copy of an
        earlier row, and for a row that is left out.
    """
    audited = _first_of_each(hashes, identical, pa.array([], pa.uint64()))
    if holdout_hashes is None or holdout_identical is None:
        return audited, np.empty(0, int)
    return audited, _first_of_each(holdout_hashes, holdout_identical + len(hashes), pc.drop_null(hashes))


def _first_of_each(hashes: pa.ChunkedArray, numbers: np.ndarray, left_out: pa.Array | pa.ChunkedArray) -> np.ndarray:
    wanted = pc.and_(hashes.is_valid(), pc.invert(pc.is_in(hashes, value_set=left_out)))
    rows = np.flatnonzero(wanted.to_numpy())
    # nulls are filled first: NumPy integers have none, and float64 would round hashes and merge distinct images
    _, first = np.unique(pc.fill_null(hashes, 0).to_numpy()[rows], return_index=True)
    result = np.full(len(numbers), -1)
    result[rows[first]] = numbers[rows[first]]
    return result


def samples_table(distance: np.ndarray, nearest: np.ndarray, hit: np.ndarray, rows: int) -> pa.Table:
    """Describe each sample by its nearest image, audited or held out, and whether it is a copy.

    Args:
        distance: distances to the nearest groups, for uint8 pixels, (samples, k), rising; infinite beyond the last.
        nearest: the nearest group of each sample, (samples,), -1 for none.
        hit: the group that each sample hits, (samples,), -1 for none.
        rows: audited rows, after which groups are held-out ones.

    Returns:
        A table with the columns of `records.SAMPLES`, one row per sample.
    """
    held, none = nearest >= rows, nearest < 0
    finite = np.where(np.isfinite(distance), distance, np.nan)
    columns = {
        "number": pa.array(np.arange(len(hit))),
        "nearest_row": pa.array(nearest, pa.int64(), mask=held | none),
        "nearest_holdout_row": pa.array(nearest - rows, pa.int64(), mask=~held),
        "distance": pa.array(distance[:, 0] / PIXEL_SCALE, pa.float64(), mask=none),
        "ratio": pa.array(distance[:, 0] / np.maximum(np.nanmean(finite, 1), 1e-12), pa.float64(), mask=none),
        "hit": pa.array(hit >= 0),
    }
    return pa.table(columns, schema=SAMPLES)


def count_copies(distance: np.ndarray, hit: np.ndarray) -> dict[str, float]:
    """Count the copies among samples, and measure how far samples are from images that they do not copy.

    Args:
        distance: as in `samples_table`.
        hit: as in `samples_table`.

    Returns:
        `copies`, and `distance`: the mean distance, for pixels in [-1, 1], to the nearest image other than the copied
        one, which grows as a sampler leaves what images look like.
    """
    copied = hit >= 0
    other = distance[np.arange(len(hit)), np.minimum(copied.astype(int), distance.shape[1] - 1)] / PIXEL_SCALE
    return {"copies": int(copied.sum()), "distance": float(other[np.isfinite(other)].mean())}
