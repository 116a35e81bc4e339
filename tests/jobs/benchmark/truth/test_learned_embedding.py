"""A learned embedding: its views, its loss, its threshold, and the command on few images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from jobs.benchmark.__main__ import main
from jobs.benchmark.truth import grouping, learned_embedding
from jobs.benchmark.truth.learned_embedding import (
    contrastive_loss,
    embed_images,
    nearest_other,
    threshold_for,
    train_embedding,
    view,
)
from tests.support.measured_pages import headings
from volgrowth.demo.cases import digit_images
from volgrowth.demo.training import Recipe

TINY = Recipe(channels=(8, 8), steps=60, batch=32)


def test_views_differ_and_stay_images() -> None:
    images = torch.rand(16, 3, 32, 32) * 2 - 1
    first, second = view(images), view(images)
    assert first.shape == images.shape
    assert first.abs().max() <= 1
    assert ((first - second).abs().flatten(1).mean(1) > 0.02).all()


def test_the_loss_is_that_of_simclr_written_out() -> None:
    first, second = torch.randn(2, 5, 4, dtype=torch.float64)
    both = [functional.normalize(one, dim=0) for one in (*first, *second)]
    expected = []
    for i in range(10):
        weights = [((both[i] @ both[k]) / learned_embedding.TEMPERATURE).exp() for k in range(10)]
        expected.append(-(weights[(i + 5) % 10] / (sum(weights) - weights[i])).log())
    assert contrastive_loss(first, second).item() == pytest.approx(float(sum(expected) / 10))


def test_a_threshold_leaves_as_many_mistakes_as_asked() -> None:
    random = np.random.default_rng(0)
    embedded = random.normal(size=(50, 4)).astype(np.float32)
    nearest = nearest_other(embedded / np.linalg.norm(embedded, axis=1, keepdims=True))
    for mistaken in (0, 3, 20, 50):
        assert (nearest >= threshold_for(nearest, mistaken)).sum() <= mistaken
        assert mistaken == 0 or (nearest >= threshold_for(nearest, mistaken)).sum() >= mistaken - 1


def test_training_brings_views_of_an_image_together() -> None:
    images = digit_images()[:200]
    torch.manual_seed(1)
    shown = torch.from_numpy(images).float() / 127.5 - 1
    views = ((view(shown) + 1) * 127.5).round().to(torch.uint8).numpy()
    ranks = []
    for steps in (1, 200):
        network = train_embedding(images, Recipe(channels=(8, 8), steps=steps, batch=32))
        alike = embed_images(network, images) @ embed_images(network, views).T
        ranks.append((alike > np.diag(alike)[:, None]).sum(1).mean())
    assert ranks[1] < ranks[0] / 2


def test_the_command_fills_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned_embedding, "RECIPE", TINY)
    monkeypatch.setattr(learned_embedding.measure_learned, "__defaults__", (("digits", "emoji"), TINY))
    monkeypatch.setattr(grouping, "MOST", 60)
    monkeypatch.setattr(grouping.group_copies, "__defaults__", (12, 0))
    assert main(["learned", "--output", str(tmp_path), "--data", str(tmp_path)]) == 0
    page = (tmp_path / "truth.md").read_text()
    assert headings(page, "learned-table")[:3] == ["set", "copies", "by the hash, %"]
    assert "| digits | mirrored |" in page.partition("<!-- begin learned-table -->")[2]
    assert "Left out, since its images are not there: emoji." in page
