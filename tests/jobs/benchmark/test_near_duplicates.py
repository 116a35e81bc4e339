import json

import numpy as np

from jobs.benchmark.__main__ import main
from jobs.benchmark.near_duplicates import FAMILY, IDENTICAL, KINDS, _pairs, pair_recall, plant_hashes
from jobs.pages import DOCS
from tests.support.measured_pages import headings
from volgrowth.analysis.duplicates import RADIUS, duplicate_clusters


def test_what_is_planted_is_what_was_said():
    planted = plant_hashes(1200)
    assert np.bincount(planted.kind).tolist() == [300, 300, 100, 500]
    hashes, content = (planted.scores[name].to_numpy() for name in ("phash", "content_hash"))
    for kind, most in (("copied", RADIUS), ("changed", 2 * RADIUS)):
        for family in np.unique(planted.family[planted.kind == KINDS.index(kind)]):
            mine = np.flatnonzero(planted.family == family)
            assert len(mine) == FAMILY
            named, times = np.unique(content[mine], return_counts=True)
            assert times.max() == (IDENTICAL if kind == "copied" else 1)
            original = mine[content[mine] == named[times.argmax()]][0]
            assert np.bitwise_count(hashes[mine] ^ hashes[original]).max() <= most
    single = planted.kind == KINDS.index("single")
    assert len(np.unique(planted.family[single])) == 300
    skewed = hashes[planted.kind == KINDS.index("skewed")]
    assert (skewed == 0).sum() == 250
    assert (skewed < 2**32).all()


def test_pairs_are_counted():
    random = np.random.default_rng(0)
    a, b = random.integers(4, size=(2, 50))
    one, two = np.triu_indices(50, 1)
    assert _pairs(a) == (a[one] == a[two]).sum()
    assert _pairs(a, b) == ((a[one] == a[two]) & (b[one] == b[two])).sum()


def test_every_copy_of_an_image_is_found():
    planted = plant_hashes(24_000, seed=1)
    cluster, _ = duplicate_clusters(planted.scores)
    assert pair_recall(planted, cluster, "copied") == 1
    assert 0.4 < pair_recall(planted, cluster, "changed") < 1


def test_the_command_writes_what_it_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)  # the process that searches finds `jobs` without it
    assert main(["duplicates", "--output", str(tmp_path / "bench"), "--rows", "12000", "1200"]) == 0
    measured, small = json.loads((tmp_path / "bench/engine/duplicates.json").read_text())["tables"]["table"]
    assert (measured["rows"], measured["copies found, %"], measured["false pairs"]) == (12_000, 100, 0)
    assert small["rows"] == 1200
    assert 10 < measured["memory before, MiB"] <= measured["at most, MiB"]
    page = (tmp_path / "bench/engine.md").read_text()
    assert "| 12,000 |" in page
    assert "| 12,000 |" in capsys.readouterr().out
    assert headings(page, "duplicates-table") == headings((DOCS / "engine.md").read_text(), "duplicates-table")
