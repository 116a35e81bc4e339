import json

import numpy as np
import pytest

from jobs.benchmark.__main__ import main
from jobs.benchmark.near_embeddings import COPIED, KINDS_OF_EMBEDDINGS, LEAST, MOST, plant_embeddings
from jobs.pages import DOCS
from tests.support.measured_pages import headings


@pytest.mark.parametrize("kind", KINDS_OF_EMBEDDINGS)
def test_what_is_planted_is_what_was_said(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("jobs.benchmark.near_embeddings.BATCH", 700)
    copies = plant_embeddings(tmp_path / "vectors", 5000, 64, kind)
    vectors = np.fromfile(tmp_path / "vectors", np.float32).reshape(5000, 64)
    assert copies == 5000 / COPIED
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosine = (vectors[:copies] * vectors[-copies:]).sum(axis=1)
    assert cosine.min() > LEAST - 1e-5
    assert cosine.max() < MOST + 1e-5
    apart = (vectors[:2000] @ vectors[2000:4000].T).mean()
    assert apart == pytest.approx(0.5 if kind == "clusters" else 0, abs=0.02)


def test_the_command_writes_what_it_measured(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert main(["embeddings", "--output", str(tmp_path / "bench"), "--rows", "2000", "--width", "32"]) == 0
    rows = json.loads((tmp_path / "bench/engine/embeddings.json").read_text())["tables"]["table"]
    assert [row["kind"] for row in rows] == list(KINDS_OF_EMBEDDINGS)
    assert {row["copies found, %"] for row in rows} == {100}
    assert {row["joined otherwise"] for row in rows} == {0}
    pages = ((tmp_path / "bench/engine.md").read_text(), (DOCS / "engine.md").read_text())
    written, committed = (headings(page, "embeddings-table") for page in pages)
    assert written == committed
