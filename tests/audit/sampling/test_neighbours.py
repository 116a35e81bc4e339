"""Nearest neighbours against the whole matrix of distances, however the images come along."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from volgrowth.audit.sampling import neighbours
from volgrowth.audit.sampling.neighbours import Neighbours


def images(count: int, seed: int, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, (count, 1, 2, 3)).astype(np.uint8)


def directly(queries: np.ndarray, among: np.ndarray, groups: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances and groups by brute force in integers, ties by group."""
    wide = queries.reshape(len(queries), 1, -1).astype(int) - among.reshape(1, len(among), -1)
    squared = (wide**2).sum(2).astype(float)
    numbers = np.unique(groups)
    best = np.stack([squared[:, groups == number].min(1) for number in numbers], 1)
    order = np.stack([np.lexsort((numbers, row)) for row in best])[:, :k]
    return np.take_along_axis(best, order, 1), numbers[order]


def test_every_distance_is_exact() -> None:
    queries, among, groups = images(40, 0), images(500, 1), np.random.default_rng(2).integers(0, 300, 500)
    found = Neighbours(queries, 20)
    found.add(among, groups)
    squared, group = directly(queries, among, groups, 20)
    assert (found.squared == squared).all()
    assert (found.squared[:, :19] == squared[:, :19]).all()
    unique = (squared[:, 1:] != squared[:, :-1]).all(1)
    assert (found.group[unique] == group[unique]).all()


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 120), max_size=4), seed=st.integers(0, 99), merged=st.booleans())
def test_blocks_ranges_and_order_do_not_matter(cuts: list[int], seed: int, merged: bool) -> None:
    """Few grey levels, so that ties and exact copies abound; the distances are the same, and so is the nearest."""
    random = np.random.default_rng(seed)
    queries, among, groups = images(7, seed, 3), images(120, seed + 1, 3), random.integers(0, 60, 120)
    whole, pieces = Neighbours(queries, 10), Neighbours(queries, 10)
    whole.add(among, groups)
    order = random.permutation(120)
    for part in np.split(order, sorted(cuts)):
        if merged:
            piece = Neighbours(queries, 10)
            piece.add(among[part], groups[part])
            pieces.merge(piece.squared, piece.group)
        else:
            pieces.add(among[part], groups[part])
    assert (whole.squared == pieces.squared).all()
    assert all(len(set(row)) == len(row) for row in pieces.group.tolist())


def test_memory_is_cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "AT_ONCE", 4)
    queries, among, groups = images(10, 0), images(30, 1), np.arange(30)
    found = Neighbours(queries, 5)
    found.add(among, groups)
    assert (found.squared == directly(queries, among, groups, 5)[0]).all()


def test_a_device_without_memory_left_compares_smaller_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where an attempt had compared a part of its block, and where a group comes again."""
    queries, among, groups = images(10, 0), images(30, 1), np.arange(30) % 13
    whole, compute, tried = Neighbours(queries, 5), neighbours._squared_distances, list[int]()
    whole.add(among, groups)

    def limited(some: Tensor, block: Tensor) -> Tensor:
        tried.append(len(block))
        if len(some) * len(block) > 20 or len(tried) == 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(some, block)

    monkeypatch.setattr(neighbours, "_squared_distances", limited)
    monkeypatch.setattr(neighbours, "AT_ONCE", 16)
    small = Neighbours(queries, 5)
    small.add(among, groups)
    assert set(tried) >= {16, 8, 4, 2}
    assert (small.squared == whole.squared).all()
    assert (small.group == whole.group).all()


def test_fewer_groups_than_neighbours() -> None:
    found = Neighbours(images(2, 0), 5)
    found.add(images(3, 1), np.array([4, 4, 9]))
    assert np.isinf(found.squared[:, 2:]).all()
    assert (found.group[:, 2:] == -1).all()
    assert sorted(found.group[0, :2].tolist()) == [4, 9]
