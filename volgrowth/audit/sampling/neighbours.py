"""Exact nearest neighbours of a set of queries, kept while any number of images passes by.

Memory holds the queries, k neighbours of each, and one block of distances, a smaller one where memory runs out.
Distances are computed as |q|^2 + |x|^2 - 2 q.x in float64, which for uint8 pixels is integer arithmetic without
rounding: the neighbours do not depend on blocks, shards or devices. Images belong to groups (an image and its copies);
a group is as near as its nearest member and counts once.
"""

from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from volgrowth.audit.output.manifest import SCORES_FOLDER, Shard
from volgrowth.audit.sampling.drawing import read_images
from volgrowth.audit.sampling.hits import look_of
from volgrowth.audit.workers.fitting import BatchSize
from volgrowth.audit.workers.loading import DataWorker
from volgrowth.numerics.precision import has_float64

# queries, and images, that are compared at a time, as long as memory lasts
AT_ONCE = 2048


class Neighbours:
    """The k nearest groups of each query.

    Args:
        queries: (S, ...) of any shape and number type.
        k: neighbours to keep.
        device: where distances are computed, if it has float64; else that is the CPU.

    Attributes:
        squared: (S, k) squared Euclidean distances, rising, infinite where there were fewer groups.
        group: (S, k) int64, -1 there.
    """

    def __init__(self, queries: np.ndarray, k: int, device: torch.device | str = "cpu"):
        device = device if has_float64(device) else "cpu"
        self._queries = _flat(queries, device)
        self._squared = torch.full((len(queries), k), torch.inf, dtype=torch.float64, device=device)
        self._group = torch.full((len(queries), k), -1, dtype=torch.long, device=device)
        self.k, self.device, self._block = k, device, BatchSize(AT_ONCE)

    def add(self, images: np.ndarray, groups: np.ndarray) -> None:
        """Compare the queries with further images.

        Args:
            images: (n, ...) of the shape and type of the queries.
            groups: (n,) the group of each image, not negative.

        Raises:
            NoMemoryError: the device has no memory for one query and one image.
        """

        def compare(which: Sequence[int]) -> None:
            # what an attempt that ran out of memory has compared may be compared again: a group competes as one
            there = slice(which[0], which[-1] + 1)
            block, number = _flat(images[there], self.device), _tensor(groups[there]).to(self.device)
            present, member = number.unique(return_inverse=True)
            for first in range(0, len(self._queries), self._block.size):
                rows = slice(first, first + self._block.size)
                squared = _by_group(_squared_distances(self._queries[rows], block), member, len(present))
                self._compete(rows, squared, present)

        self._block.each(range(len(images)), compare)

    def merge(self, squared: np.ndarray, group: np.ndarray) -> None:
        """Take in the neighbours (S, k) that were found among other images, in the form of the attributes."""
        candidates = torch.cat([self._squared, _tensor(squared).to(self._squared)], 1)
        numbers = torch.cat([self._group, _tensor(group).to(self._group)], 1)
        # by group, and within it by distance: all but the nearest of a group drop out
        order = candidates.argsort(dim=1)
        order = order.gather(1, numbers.gather(1, order).argsort(dim=1, stable=True))
        candidates, numbers = candidates.gather(1, order), numbers.gather(1, order)
        candidates[:, 1:][numbers[:, 1:] == numbers[:, :-1]] = torch.inf
        self._keep(slice(None), candidates, numbers)

    def _compete(self, rows: slice, squared: Tensor, present: Tensor) -> None:
        """Compare squared distances (rows, groups) to sorted groups (groups,) with the neighbours kept so far."""
        kept, group = self._squared[rows], self._group[rows]
        position = torch.searchsorted(present, group).clamp(max=len(present) - 1)
        again = present[position] == group  # a group that was met before competes as one
        squared = squared.scatter_reduce(1, position, torch.where(again, kept, torch.inf), "amin")
        candidates = torch.cat([torch.where(again, torch.inf, kept), squared], 1)
        numbers = torch.cat([group, present.expand(len(group), -1)], 1)
        self._keep(rows, candidates, numbers)

    def _keep(self, rows: slice, squared: Tensor, numbers: Tensor) -> None:
        best, chosen = squared.topk(self.k, dim=1, largest=False)
        self._squared[rows] = best
        self._group[rows] = torch.where(best.isinf(), -1, numbers.gather(1, chosen))

    @property
    def squared(self) -> np.ndarray:
        return np.take_along_axis(self._squared.cpu().numpy(), self._order, 1)

    @property
    def group(self) -> np.ndarray:
        return np.take_along_axis(self._group.cpu().numpy(), self._order, 1)

    @property
    def _order(self) -> np.ndarray:
        """Order by distance, then by group, so that ties do not tell in which order images came."""
        return np.lexsort((self._group.cpu().numpy(), self._squared.cpu().numpy()), axis=1)


class SearchingWorker(DataWorker):
    """Finds the images of a data set that are nearest to drawn images."""

    def prepare(self) -> None:
        super().prepare()
        self.queries: tuple[list[str] | list[int], np.ndarray] | None = None

    def nearest(self, names: list[str], shard: Shard, groups: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the images among a range of rows that are nearest to all drawn ones.

        Args:
            names: files with the drawn images.
            shard: the range of rows.
            groups: (rows of the range,) group of each row; negative ones are passed over.
            k: groups to find for each drawn image.

        Returns:
            Squared distances and groups, both (drawn images, k), as the attributes of `Neighbours`.
        """
        return self._nearest_to(self._drawn(names), shard, groups, k)

    def nearest_in_look(
        self, names: list[str], shard: Shard, groups: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the images that look most like the drawn ones (`hits.look_of`), as `nearest`.

        Drawn images of hardly any contrast look like nothing and have no neighbours; such images are nobody's.
        """
        looks, clear = look_of(self._drawn(names))
        squared, group = self._nearest_to(looks, shard, groups, k, in_look=True)
        return np.where(clear[:, None], squared, np.inf), np.where(clear[:, None], group, -1)

    def _drawn(self, names: list[str]) -> np.ndarray:
        """Read drawn images, once for all ranges of rows."""
        if self.queries is None or self.queries[0] != names:
            drawn = [read_images(self.store, name, self.manifest.image_shape) for name in names]
            self.queries = names, np.concatenate(drawn)
        return self.queries[1]

    def nearest_to_rows(
        self, rows: list[int], shard: Shard, groups: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the images among a range of rows that are nearest to the images of audited rows, as `nearest`.

        Raises:
            DataError: one of the images can no longer be read.
        """
        if self.queries is None or self.queries[0] != rows:
            self.queries = rows, np.stack([self.scored_pixels(SCORES_FOLDER, row) for row in rows])
        return self._nearest_to(self.queries[1], shard, groups, k)

    def _nearest_to(
        self, queries: np.ndarray, shard: Shard, groups: np.ndarray, k: int, in_look: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the images among a range of rows that are nearest to queries: to pixels, or to looks."""
        found = Neighbours(queries, k, self.device)
        rows = zip(self.source(shard.folder).read(shard.start, shard.stop), groups.tolist(), strict=True)
        wanted = ((self.pixels(row), group) for row, group in rows if group >= 0)
        while some := list(islice(wanted, AT_ONCE)):
            there = [(pixels, group) for pixels, group in some if pixels is not None]
            if there:
                images, numbers = np.stack([pixels for pixels, _ in there]), np.array([group for _, group in there])
                if in_look:
                    images, clear = look_of(images)
                    images, numbers = images[clear], numbers[clear]
                found.add(images, numbers)
        return found.squared, found.group


def _flat(images: np.ndarray, device: torch.device | str) -> Tensor:
    return _tensor(images).to(device).flatten(1)


def _tensor(array: np.ndarray) -> Tensor:
    """Copy an array: those from Ray's store may not be written to, which torch does not know."""
    return torch.from_numpy(np.array(array))


def _squared_distances(queries: Tensor, images: Tensor) -> Tensor:
    queries, images = queries.double(), images.double()
    lengths = (queries**2).sum(1)[:, None] + (images**2).sum(1)
    return (lengths - 2 * queries @ images.T).clamp(min=0)


def _by_group(squared: Tensor, member: Tensor, groups: int) -> Tensor:
    """Return the smallest distance to each group: (S, groups)."""
    if groups == squared.shape[1]:
        return torch.empty_like(squared).scatter_(1, member.expand_as(squared), squared)
    nearest = torch.full((len(squared), groups), torch.inf, dtype=squared.dtype, device=squared.device)
    return nearest.scatter_reduce(1, member.expand_as(squared), squared, "amin")
