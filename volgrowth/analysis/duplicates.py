r"""Groups of near duplicates, each within a radius of one of its images.

Two images are alike when their perceptual hashes differ in at most `RADIUS` of 64 bits and their brightness and
contrast agree (`Light`); flat images, whose hash means nothing, are alike to none. To join whatever is alike would
chain unlike images into one group. Groups are those of the leader algorithm instead (Hartigan, Clustering Algorithms,
1975, chapter 3): images come in order, and each joins the first leader that it is alike to, or else becomes one. First
come the images that most rows look like exactly, which a model is most likely to have learnt and which copies most
likely were made from; content hashes break ties, so that groups do not depend on the order of rows.

`RADIUS` is small because hashes of small images are weak. Within it are, of images that were brightened by 8 grey
levels, given noise of 4, or saved as JPEG, 92% or more of photographs at 128 pixels and 75% or more of digits at 8 (but
only 60% at 64 pixels of patches that are half sky); 1% of 1,797 different digits are alike to another one. At a radius
of 4 it is 96%, 95%, 67% and 7%: that would drop different images to catch a few more copies, and to miss a copy costs
less. Of images moved by two pixels most are missed at either, and all mirrored ones.
tests/analysis/test_duplicates.py measures this.

Search. A hash is cut into `BANDS` = `RADIUS` + 2 bands; of two that differ in `RADIUS` bits at least two bands are
equal, so that candidates are images with equal keys, a key being two bands. Bits are dealt to bands by how evenly they
split the images, so that keys tell images apart where hashes do at all. Images with more than `PAIRS` pairs of
candidates are halved: leaders of the first half take in what is alike to them in the second, and only the rest of it
is compared with itself. Candidates are looked at `CHUNK` at a time. So memory is a constant plus some 150 bytes a row,
however many images share a hash, or a key.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.as_numpy import as_mask
from volgrowth.analysis.calibration.complexity import FLAT
from volgrowth.analysis.distinct import group_names, number_images

RADIUS = 2
BANDS = RADIUS + 2
PAIRS = 2**24
CHUNK = 2**20

# Brightness and contrast of pixels in [-1, 1] are rounded to steps of `STEP`; images up to `STEPS_APART` steps apart
# are alike. Images of one hash and one rounded light cannot be told apart, so that they are searched for once.
STEP = 0.05
STEPS_APART = 2


@dataclass(frozen=True)
class Light:
    """Light of n images, in steps of `STEP`.

    Attributes:
        brightness: mean of each image's pixels, (n,) int8.
        contrast: standard deviation of each image's pixels, (n,) int8.
    """

    brightness: np.ndarray
    contrast: np.ndarray

    @classmethod
    def of(cls, scores: pa.Table) -> "Light":
        """Return the light of all rows of a table of scores; every row must have an image."""
        values = scores["mean"].to_numpy(), np.sqrt(scores["variance"].to_numpy())
        return cls(*(np.round(value / STEP).astype(np.int8) for value in values))

    def __getitem__(self, chosen: np.ndarray) -> "Light":
        return Light(self.brightness[chosen], self.contrast[chosen])

    def agrees(self, other: "Light") -> np.ndarray:
        """Compare each image with the one in the same place, or with the only one; return a mask, (n,)."""
        apart = np.maximum(abs(self.brightness - other.brightness), abs(self.contrast - other.contrast))
        return apart <= STEPS_APART


def has_look(scores: pa.Table) -> np.ndarray:
    """Return a mask of the rows whose perceptual hash means something: they have an image, and it is not flat."""
    return as_mask(pc.and_(scores["phash"].is_valid(), pc.greater(scores["variance"], FLAT)))


def duplicate_clusters(scores: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Group near duplicates.

    Args:
        scores: with the columns row, phash, content_hash, mean and variance of `records.SCORES`.

    Returns:
        For each row the smallest row of its group, (rows,), and the number of rows in the group, (rows,). Identical
        images are in one group; a row without an image is a group of its own.
    """
    image, first = number_images(scores)
    # filled first: NumPy has no null in integers, and float64 would round hashes
    content = pc.fill_null(scores["content_hash"], 0).to_numpy()
    leader = np.arange(len(first))
    seen = np.flatnonzero(has_look(scores)[first])
    shown = scores.select(["phash", "mean", "variance"]).take(pa.array(first[seen]))
    rows = np.bincount(image, minlength=len(first))[seen]
    leader[seen] = seen[_grouped(shown["phash"].to_numpy(), Light.of(shown), rows, content[first[seen]])]
    return group_names(scores["row"].to_numpy(), leader[image])


def find_leaders(hashes: np.ndarray, light: Light) -> np.ndarray:
    """Return, for each image, the position of the image that represents its group.

    Args:
        hashes: perceptual hashes, (n,) uint64, in the order in which images may lead.
        light: of the same images.

    Returns:
        Position of each image's leader, (n,).
    """
    leader = np.full(len(hashes), -1)
    _lead(_dealt(hashes), light, np.arange(len(hashes)), leader)
    return leader


def _grouped(hashes: np.ndarray, light: Light, rows: np.ndarray, content: np.ndarray) -> np.ndarray:
    """Return the position of one image of each image's group, (images,). `rows` counts the rows of each image."""
    order = np.lexsort((content, light.contrast, light.brightness, hashes))
    columns = [column[order] for column in (hashes, light.brightness, light.contrast)]
    begins = np.ones(len(order), bool)
    begins[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    kind, one = np.cumsum(begins) - 1, order[begins]  # images of one hash and one light, and the first of them
    ranked = np.lexsort((content[one], -np.bincount(kind, rows[order])))
    led = np.empty(len(one), np.int64)
    led[ranked] = ranked[find_leaders(hashes[one[ranked]], light[one[ranked]])]
    group = np.empty(len(order), np.int64)
    group[order] = one[led[kind]]
    return group


def _dealt(hashes: np.ndarray) -> np.ndarray:
    """Reorder the bits of hashes (n,), so that bits that split the images evenly are in different bands."""
    if not len(hashes):
        return hashes
    share = np.array([np.mean(hashes >> np.uint64(bit) & np.uint64(1)) for bit in range(64)])
    dealt = np.argsort(abs(share - 0.5), kind="stable")
    by_band = np.concatenate([dealt[band::BANDS] for band in range(BANDS)])
    result = np.zeros_like(hashes)
    for place, bit in enumerate(by_band.tolist()):
        result |= (hashes >> np.uint64(bit) & np.uint64(1)) << np.uint64(place)
    return result


def _keys(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Yield for every pair of bands the keys (n,): the hashes with the bits of all other bands set to 0."""
    masks = [sum(1 << bit for bit in band.tolist()) for band in np.array_split(np.arange(64), BANDS)]
    for one, other in combinations(masks, 2):
        yield hashes & np.uint64(one | other)


def _lead(hashes: np.ndarray, light: Light, members: np.ndarray, leader: np.ndarray) -> None:
    """Fill in the leaders of `members`, positions in order, none of which is alike to a leader found before."""
    pairs = _alike_among(hashes[members], light[members])
    if pairs is not None:
        leader[members] = members[_first_leaders(len(members), *pairs)]
        return
    early, late = members[: len(members) // 2], members[len(members) // 2 :]
    _lead(hashes, light, early, leader)
    found = early[leader[early] == early]
    first = _first_alike(hashes[found], light[found], hashes[late], light[late])
    taken = first < len(found)
    leader[late[taken]] = found[first[taken]]
    _lead(hashes, light, late[~taken], leader)


def _alike_among(hashes: np.ndarray, light: Light) -> tuple[np.ndarray, np.ndarray] | None:
    """Return all pairs of images that are alike, the smaller position first; None with more than `PAIRS` candidates."""
    total, pairs = 0, [np.empty((2, 0), np.int64)]
    for key in _keys(hashes):
        order = np.argsort(key, kind="stable")
        key = key[order]
        after, stop = np.arange(1, len(key) + 1), np.searchsorted(key, key, side="right")
        total += int((stop - after).sum())
        if total > PAIRS:
            return None
        for place, other in _expanded(after, stop):
            one, two = order[place], order[other]
            alike = _alike(hashes[one], light[one], hashes[two], light[two])
            pairs.append(np.stack([one[alike], two[alike]]))
    early, late = np.concatenate(pairs, axis=1)
    return early, late


def _first_alike(hashes: np.ndarray, light: Light, asked: np.ndarray, asked_light: Light) -> np.ndarray:
    """Return the position of the first image that each asked one is alike to; the number of images if none is."""
    first = np.full(len(asked), len(hashes))
    for key, asked_key in zip(_keys(hashes), _keys(asked), strict=True):
        order = np.argsort(key, kind="stable")
        start, stop = (np.searchsorted(key[order], asked_key, side) for side in ("left", "right"))
        for which, place in _expanded(start, stop):
            one = order[place]
            alike = _alike(hashes[one], light[one], asked[which], asked_light[which])
            np.minimum.at(first, which[alike], one[alike])
    return first


def _alike(hashes: np.ndarray, light: Light, others: np.ndarray, others_light: Light) -> np.ndarray:
    return (np.bitwise_count(hashes ^ others) <= RADIUS) & light.agrees(others_light)


def _expanded(start: np.ndarray, stop: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield all (i, place) with start[i] <= place < stop[i], in order, at most `CHUNK` at a time."""
    some = np.flatnonzero(stop > start)
    ends = np.cumsum(stop[some] - start[some])
    for begin in range(0, int(ends[-1]) if len(ends) else 0, CHUNK):
        flat = np.arange(begin, min(begin + CHUNK, ends[-1]))
        which = np.searchsorted(ends, flat, side="right")
        yield some[which], stop[some[which]] + flat - ends[which]


def _first_leaders(count: int, early: np.ndarray, late: np.ndarray) -> np.ndarray:
    """Return each image's leader, (count,), from all pairs that are alike.

    An image leads if no image before it that it is alike to leads. They are decided in rounds: an image that waits for
    no other leads, and an image that is alike to a leader does not.
    """
    leads, undecided = np.zeros(count, bool), np.ones(count, bool)
    one, two = early, late
    while undecided.any():
        waits = np.zeros(count, bool)
        waits[two] = True
        leads |= undecided & ~waits
        undecided &= waits
        undecided[two[leads[one]]] = False
        open_ = undecided[one] & undecided[two]
        one, two = one[open_], two[open_]
    leader = np.arange(count)
    led = leads[early]
    np.minimum.at(leader, late[led], early[led])
    return leader
