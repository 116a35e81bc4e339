"""Which vectors join which: beside a leader algorithm that compares every pair, and among planted pairs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volgrowth.analysis import cells, leaders
from volgrowth.analysis import embeddings as module
from volgrowth.analysis.cells import Cell, Division
from volgrowth.analysis.embeddings import Embeddings, Stored
from volgrowth.analysis.leaders import Leaders

Array = np.ndarray
SIMILARITY = 0.95


def of_length_one(vectors: Array) -> Array:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def moved(vectors: Array, cosine: Array | float, random: np.random.Generator) -> Array:
    """Return vectors that have these cosines with the given ones."""
    away = random.normal(size=vectors.shape)
    away = of_length_one(away - (away * vectors).sum(axis=1, keepdims=True) * vectors)
    cosine = np.reshape(cosine, (-1, 1))
    return of_length_one(cosine * vectors + np.sqrt(1 - cosine**2) * away)


def joined(
    folder: Path,
    vectors: Array,
    similarity: float = SIMILARITY,
    batch: int = 1000,
    place: Array | None = None,
    told: dict[str, Any] | None = None,
) -> Array:
    """Return the leader of each row, (rows,), when rows come in order; `told` gets what the summary says."""
    folder.mkdir(exist_ok=True)
    place = np.arange(len(vectors)) if place is None else place
    vectors.tofile(folder / "vectors")
    place.tofile(folder / "place")
    embeddings = Embeddings("e", similarity, folder, len(place), len(vectors), vectors.shape[1])
    leader, rows = np.arange(len(place)), np.arange(len(place))
    for late, found in embeddings.join(rows[start : start + batch] for start in range(0, len(rows), batch)):
        leader[late] = found
    assert embeddings.joined == (leader != rows).sum()
    if told is not None:
        told |= embeddings.numbers
    return leader


def one_by_one(vectors: Array, similarity: float = SIMILARITY, compared: Array | None = None) -> Array:
    """Return the leader of each vector: the nearest of those before it that it is compared with and that lead."""
    leader, cosines = np.arange(len(vectors)), vectors @ vectors.T
    for one in range(len(vectors)):
        near = (leader[:one] == np.arange(one)) & (cosines[one, :one] >= similarity - leaders.ROUNDING)
        if compared is not None:
            near &= compared[one, :one]
        if near.any():
            leader[one] = np.where(near, cosines[one, :one], -2).argmax()
    return leader


def in_cells(folder: Path, vectors: Array) -> list[Cell]:
    division = Division(lambda places: vectors[places], SIMILARITY, folder, lambda needed: None)
    return list(division.divide(Cell.whole(len(vectors))))


@pytest.mark.parametrize("width", [3, 6, 16])
@pytest.mark.parametrize("size", [7, 512])
def test_one_cell_is_compared_pair_by_pair(tmp_path, monkeypatch, width, size):
    monkeypatch.setattr(module, "BATCH", size)
    monkeypatch.setattr(leaders, "COLUMNS", 2 * size)
    random = np.random.default_rng(width)
    centres = random.normal(size=(150, width))
    vectors = of_length_one(centres[random.integers(150, size=900)] + 0.2 * random.normal(size=(900, width)))
    assert joined(tmp_path, vectors).tolist() == one_by_one(vectors).tolist()


def test_several_cells_find_what_every_pair_that_shares_one_would(tmp_path, monkeypatch):
    """Vectors that are dense chain groups over cells: some leaders turn out to join others, and rounds mend that."""
    monkeypatch.setattr(cells, "FEW", 100)
    monkeypatch.setattr(cells, "PROBES", (2,))
    monkeypatch.setattr(cells, "MEMBERS", 700)
    vectors = of_length_one(np.random.default_rng(0).normal(size=(2000, 6)))
    compared = np.zeros((2000, 2000), bool)
    found = in_cells(tmp_path, vectors)
    assert len(found) > 20
    for cell in found:
        mine = np.concatenate(list(cell.blocks(50)))
        assert len(cell) == len(mine) == len(np.unique(mine))
        assert (np.diff(mine) > 0).all()
        compared[np.ix_(mine, mine)] = True
    lost = list[int]()
    reopen: Callable[[module._Decided], int] = module._Decided._reopen

    def counted(self: module._Decided) -> int:
        lost.append(reopen(self))
        return lost[-1]

    monkeypatch.setattr(module._Decided, "_reopen", counted)
    leader = joined(tmp_path / "a", vectors)
    assert lost[0] > 0
    assert lost[-1] == 0
    assert leader.tolist() == one_by_one(vectors, compared=compared).tolist()
    assert not np.array_equal(leader, one_by_one(vectors))
    monkeypatch.setattr(module, "CHUNK", 1000)
    monkeypatch.setattr(module, "BATCH", 100)
    monkeypatch.setattr(module, "PIECE", 64)
    assert joined(tmp_path / "b", vectors, batch=17).tolist() == leader.tolist()


def test_groups_that_are_still_open_after_the_last_round_lead_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "FEW", 100)
    monkeypatch.setattr(cells, "PROBES", (2,))
    monkeypatch.setattr(module, "ROUNDS", 1)
    vectors, told = of_length_one(np.random.default_rng(0).normal(size=(2000, 6))), dict[str, Any]()
    leader = joined(tmp_path, vectors, told=told)
    assert told["undecided_groups"] > 0
    assert 0 < told["shared_cells"] < 1
    assert (leader[leader] == leader).all()
    assert (np.einsum("ij,ij->i", vectors, vectors[leader]) >= SIMILARITY - 1e-5).all()


def common(random: np.random.Generator, rows: int) -> Array:
    """Vectors of 200 clusters with a common mean: two random ones have a cosine of .5, two of a cluster of .8."""
    centres, mean = of_length_one(random.normal(size=(200, 64))), of_length_one(random.normal(size=(1, 64)))
    own = of_length_one(random.normal(size=(rows, 64)) / np.sqrt(1 + np.arange(64) / 8))
    return of_length_one(
        np.sqrt(0.5) * mean + np.sqrt(0.3) * centres[random.integers(200, size=rows)] + np.sqrt(0.2) * own
    )


@pytest.mark.parametrize("kind", ["isotropic", "clusters"])
def test_planted_pairs_are_found_over_many_cells(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(cells, "FEW", 2000)
    random = np.random.default_rng(1)
    vectors = of_length_one(random.normal(size=(8000, 64))) if kind == "isotropic" else common(random, 8000)
    copies = moved(vectors[:2000], random.uniform(0.96, 0.99, 2000), random)
    leader = joined(tmp_path, np.concatenate([vectors, copies]))
    near = leader != np.arange(10_000)
    found = np.einsum("ij,ij->i", copies, np.concatenate([vectors, copies])[leader[8000:]])
    assert near[8000:].mean() >= 0.99
    assert (found[near[8000:]] >= SIMILARITY - 1e-5).all()
    assert len(list(tmp_path.glob("cells-*"))) >= 1


def test_equal_vectors_are_one_group_whatever_the_cells(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "FEW", 200)
    random = np.random.default_rng(2)
    distinct = of_length_one(random.normal(size=(1500, 16)))
    which = random.integers(1500, size=6000)
    which[::2] = which[0]  # one of them is half of all
    leader = joined(tmp_path, distinct[which], 1.0)
    _, first, back = np.unique(which, return_index=True, return_inverse=True)
    assert leader.tolist() == first[back].tolist()
    assert list(tmp_path.glob("cells-*"))


def test_vectors_that_are_all_alike_are_one_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "FEW", 100)
    one = of_length_one(np.random.default_rng(0).normal(size=(1, 8)))
    assert set(joined(tmp_path, np.repeat(one, 30_000, axis=0)).tolist()) == {0}
    assert not list(tmp_path.glob("cells-*"))


def test_a_cell_of_many_leaders_is_divided_again(tmp_path, monkeypatch):
    """Three quarters of the vectors lie close together, but further apart than near duplicates."""
    monkeypatch.setattr(cells, "FEW", 300)
    monkeypatch.setattr(cells, "NUMBERS", 64 * 80)  # so that pivots are few
    monkeypatch.setattr(cells, "PROBES", (6,))
    random = np.random.default_rng(3)
    middle = of_length_one(random.normal(size=(1, 64)))
    dense = moved(np.repeat(middle, 3000, axis=0), 0.93, random)  # with a cosine of .865 to each other
    vectors = np.concatenate([dense, of_length_one(random.normal(size=(1000, 64)))])
    copies = moved(vectors[::8], 0.985, random)
    all_, needed = np.concatenate([vectors, copies]), list[int]()
    division = Division(lambda places: all_[places], SIMILARITY, tmp_path, needed.append)
    parts = list(division.divide(Cell.whole(len(all_))))
    assert len(needed) == division.files > 1
    assert needed[0] == 8 * 6 * len(all_)
    assert max(len(part) for part in parts) < 2000
    leader = joined(tmp_path / "a", all_)
    assert (leader[len(vectors) :] == np.arange(0, len(vectors), 8)).mean() >= 0.97


def test_a_cell_is_left_whole_where_division_would_not_make_it_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "FEW", 100)
    monkeypatch.setattr(cells, "NUMBERS", 32 * 60)
    vectors = of_length_one(np.random.default_rng(4).normal(size=(1000, 32)))
    assert [len(cell) for cell in in_cells(tmp_path, vectors)] == [1000]
    assert not list(tmp_path.glob("cells-*"))


def test_rows_without_a_vector_join_nothing_and_lead_nothing(tmp_path):
    vectors = np.eye(4, dtype=np.float32)[[0, 1, 0, 1]]
    place = np.array([-1, 0, -1, 1, 2, 3, -1])
    assert joined(tmp_path / "a", vectors, place=place, batch=2).tolist() == [0, 1, 2, 3, 1, 3, 6]
    none = np.full(3, -1)
    assert joined(tmp_path / "b", np.empty((0, 4), np.float32), place=none).tolist() == [0, 1, 2]


def test_what_is_stored_is_read_and_changed_in_place(tmp_path):
    stored = Stored(tmp_path / "a", np.int64)
    stored.fill(module.CHUNK + 5, -1)
    stored.mapped()[[0, -1]] = 7, 8
    assert len(stored.mapped()) == module.CHUNK + 5
    assert stored.at(np.array([0, 1, module.CHUNK + 4])).tolist() == [7, -1, 8]


def test_leaders_are_kept_while_their_room_grows():
    vectors = np.eye(2000, dtype=np.float32)
    assert (Leaders(0.5).leading(vectors) == vectors).all()
