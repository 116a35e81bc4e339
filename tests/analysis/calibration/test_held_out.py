from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import ks_2samp

from tests.support.tables import failed, many, scores
from volgrowth.analysis.calibration.complexity import MEASURED
from volgrowth.analysis.calibration.held_out import Bulk, Distribution, Kinds, Overlap
from volgrowth.analysis.distinct import first_of_each
from volgrowth.analysis.duplicates import duplicate_clusters
from volgrowth.sources.pixels.features import features_of_each


def look_alikes(scores: pa.Table, holdout: pa.Table) -> np.ndarray:
    """The mask of the held-out rows that look like audited ones, which are seen in three parts."""
    overlap = Overlap(holdout)
    for start in range(0, len(scores), len(scores) // 3 + 1):
        overlap.see(scores.slice(start, len(scores) // 3 + 1))
    return overlap.alike


def most_different_regressor(scores: pa.Table, holdout: pa.Table) -> tuple[str, float] | None:
    kinds, table = Kinds(holdout), scores.select(["content_hash", *MEASURED]).filter(scores["content_hash"].is_valid())
    kinds.see(table.take(pa.array(first_of_each(table["content_hash"].to_numpy()))))
    return kinds.most_different()


def differing_bulk(evidence: np.ndarray, held: np.ndarray) -> tuple[float, float] | None:
    bulk = Bulk(held)
    for some in np.array_split(evidence, 3):
        bulk.see(some)
    return bulk.difference()


def look(phash: int, content: int, **changes: Any) -> dict[str, Any]:
    return {"phash": phash, "content_hash": content, "mean": 0.1, "variance": 0.25, **changes}


AUDITED = scores(look(1, 1), look(2, 2), look(2, 3, mean=-0.5), look(9, 4, variance=0.0), failed())


def near(*held: dict[str, Any]) -> int:
    return int(look_alikes(AUDITED, scores(*held)).sum())


def test_one_hash_and_one_brightness_are_a_near_duplicate() -> None:
    assert near(look(1, 50), look(2, 51), look(7, 52)) == 2


def test_another_brightness_or_contrast_is_another_image() -> None:
    assert near(look(1, 50, mean=0.4), look(1, 51, variance=0.5)) == 0
    assert near(look(2, 52, mean=-0.45)) == 1


def test_exact_copies_are_counted_elsewhere_and_all_rows_are_marked() -> None:
    assert near(look(1, 1)) == 0
    assert look_alikes(AUDITED, scores(look(7, 51), look(1, 50), failed(), look(1, 50))).tolist() == [0, 1, 0, 1]


def test_flat_images_share_a_hash_and_are_passed_over() -> None:
    assert near(look(9, 50, variance=0.0), failed()) == 0


def test_images_of_one_colour_are_no_near_duplicates_of_others() -> None:
    """They share a hash, brightness and contrast within a step: all held-out ones would be left out, none audited."""
    random = np.random.default_rng(0)
    colours = random.integers(40, 216, (80, 3, 1, 1)).astype(np.uint8)
    colours[[0, 40], :, 0, 0] = (0, 0, 4)  # which is black in grey
    rows = features_of_each(list(np.broadcast_to(colours, (80, 3, 32, 32)).copy()))
    assert {row["phash"] for row in rows} == {0, 1 << 63}
    audited, held = scores(*rows[:40]), scores(*rows[40:])
    assert not look_alikes(audited, held).any()
    assert np.unique(duplicate_clusters(audited)[0]).size == 40
    assert duplicate_clusters(scores(rows[0], rows[1], rows[0]))[0].tolist() == [0, 1, 0]


def test_ids_may_be_more_than_arrow_takes_from_one_column(huge_ids: pa.ChunkedArray) -> None:
    """A column of strings of which rows are taken holds 2 GiB at most: 30 million ids of 71 bytes."""
    rows = scores(*many(300), look(2, 3))
    place = rows.column_names.index("image_id")
    with pytest.raises(pa.ArrowInvalid, match="overflow"):
        rows.slice(0, len(huge_ids)).set_column(place, "image_id", huge_ids).take([0, 1, 2])
    audited = pa.concat_tables([rows.slice(0, 3).set_column(place, rows.field("image_id"), huge_ids), rows.slice(3)])
    held = scores(*many(200, seed=1), look(2, 50))
    assert look_alikes(audited, held).tolist() == look_alikes(rows, held).tolist()
    assert look_alikes(rows, held).any()
    assert most_different_regressor(audited, held) == most_different_regressor(rows, held)


def test_sets_of_one_kind() -> None:
    assert most_different_regressor(scores(*many(300)), scores(*many(200, seed=1))) is None
    assert most_different_regressor(scores(failed()), scores(*many(60))) is None


def test_a_set_of_another_kind_is_named_by_what_tells_it_apart() -> None:
    bright = [{**row, "mean": float(np.tanh(2 + row["mean"]))} for row in many(200, seed=1)]
    found = most_different_regressor(scores(*many(300)), scores(*bright))
    assert found is not None
    assert found[0] == "mean"
    assert found[1] > 0.5


def test_few_images_differ_by_chance() -> None:
    for seed in range(20):
        assert most_different_regressor(scores(*many(300)), scores(*many(20, seed=seed + 1))) is None


def test_copies_count_once() -> None:
    rows = many(300)
    copied = rows + [rows[0]] * 500
    assert most_different_regressor(scores(*copied), scores(*many(200, seed=1))) is None


def test_evidence_of_one_kind_passes_though_a_fifth_is_memorized() -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        audited = random.normal(size=300)
        audited[:60] += 6
        assert differing_bulk(audited, random.normal(size=400)) is None
        assert differing_bulk(random.normal(size=30), random.normal(size=60)) is None
    assert differing_bulk(audited[:0], audited) is None, "nothing to compare"
    assert differing_bulk(np.zeros(100), np.zeros(100)) is None, "constant scores"


@pytest.mark.parametrize(("shift", "scale"), [(0.8, 1.0), (-0.8, 1.0), (0.0, 2.5), (0.0, 0.4), (9.0, 1.0)])
def test_evidence_of_another_kind_is_seen_where_it_is_low(shift: float, scale: float) -> None:
    random = np.random.default_rng(0)
    found = differing_bulk(random.normal(shift, scale, 2000), random.normal(size=500))
    assert found is not None
    assert found[0] == pytest.approx({0.8: 0.21, -0.8: 0.79, 9.0: 0}.get(shift, 0.5), abs=0.1)


def test_the_distance_is_that_of_kolmogorov_and_smirnov() -> None:
    """However the numbers are divided, with ties and without."""
    for seed in range(40):
        random = np.random.default_rng(seed)
        one, other = (np.round(random.normal(size=size), seed % 3) for size in random.integers(1, 60, 2))
        distribution = Distribution(other)
        for some in np.array_split(one, 4):
            distribution.add(some)
        assert distribution.distance() == pytest.approx(ks_2samp(one, other).statistic, abs=1e-12)
    assert Distribution(np.empty(0)).distance() == Distribution(np.zeros(3)).distance() == 1.0


def test_what_is_shared_counts_rows_that_were_scored() -> None:
    overlap = Overlap(scores(look(3, 1), look(4, 2), look(5, 3), failed()))
    overlap.see(scores(look(1, 1), failed("non_finite", content_hash=2, phash=4, mean=0.1, variance=0.25)))
    assert overlap.shared.tolist() == [True, False, False, False]
    assert overlap.new == 1, "an image that failed is not new either"
