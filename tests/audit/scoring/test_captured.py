"""Recorded launches: the same scores as operation by operation, or a plain launch and a reason."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import volgrowth as vg
from tests.support.pipelines import build
from volgrowth.audit.scoring.captured import PLAIN, Graph, Launcher
from volgrowth.audit.scoring.cascade import Completer, Screener
from volgrowth.audit.scoring.measures import Packed
from volgrowth.audit.scoring.scorer import Scorer
from volgrowth.config import AuditConfig
from volgrowth.models import load_model
from volgrowth.sources import Row, encode_png


class Rerun:
    """A graph for machines without a GPU: a replay does the recorded work again, on the same memory."""

    recorded = 0

    def record(self, work: Callable[[], Packed]) -> Packed:
        type(self).recorded += 1
        self.work, self.results = work, work()
        return self.results

    def replay(self) -> None:
        self.results.numbers.copy_(self.work().numbers)


class Unrecordable(Rerun):
    def record(self, work: Callable[[], Packed]) -> Packed:
        raise RuntimeError("operation not permitted when stream is capturing")


class Wrong(Rerun):
    def replay(self) -> None:
        self.results.numbers.copy_(self.work().numbers * 1.01)


def config(**settings: object) -> AuditConfig:
    return AuditConfig.build(model="m", data="d", output="o", **{"batch_size": 4, **settings})


def rows(images: np.ndarray, conditions: list[str | None] | None = None) -> list[Row]:
    given = conditions or [None] * len(images)
    return [Row(k, f"{k}", "s", encode_png(image), condition=given[k]) for k, image in enumerate(images)]


def recorded(scorer: Scorer, graph: type[Graph]) -> Scorer:
    scorer.launcher = Launcher(graph)
    return scorer


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rerun, "recorded", 0)


@pytest.mark.parametrize("kind", [Scorer, Screener, Completer])
def test_a_replay_has_the_scores_of_the_plain_launch(tiny_model, digits, kind):
    denoiser = load_model(str(tiny_model))
    settings = config(measure={"preset": "screen" if kind is Screener else "standard"})
    plain, replayed = kind(denoiser, settings), recorded(kind(denoiser, settings), Rerun)
    for some in (digits[:11], digits[20:29]):  # a shard, and another one, with padded micro-batches
        assert replayed.score(rows(some)).equals(plain.score(rows(some)))
    assert Rerun.recorded == 1
    assert replayed.launcher.said == f"as a CUDA graph, same bits as {PLAIN}"
    assert plain.launcher.said == PLAIN


@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_the_axes_of_each_row_are_replayed_too(tiny_model, digits, derivative):
    settings = config(measure={"preset": "paper", "derivative": derivative})
    denoiser = load_model(str(tiny_model))
    plain, replayed = Scorer(denoiser, settings), recorded(Scorer(denoiser, settings), Rerun)
    assert replayed.score(rows(digits[:11])).equals(plain.score(rows(digits[:11])))
    assert Rerun.recorded == 1


def test_conditions_and_guidance_are_replayed_too(tmp_path):
    build("sd1", tmp_path)
    denoiser = load_model(str(tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 16, 16)).astype(np.uint8)
    items = rows(images, ["a cat", "a dog on a lawn", "", "red", "a cat", "two", "", "blue", "cat", "dog"])
    settings = config(caption_column="text", guidance=3.0)
    plain, replayed = Scorer(denoiser, settings), recorded(Scorer(denoiser, settings), Rerun)
    assert replayed.score(items).equals(plain.score(items))
    assert Rerun.recorded == 1


@pytest.mark.parametrize(
    ("graph", "why"), [(Unrecordable, "not permitted when stream is capturing"), (Wrong, "differ by 1.0e-02 of")]
)
def test_what_cannot_be_recorded_is_launched_plainly_and_said(tiny_model, digits, graph, why, caplog):
    denoiser = load_model(str(tiny_model))
    scorer = recorded(Scorer(denoiser, config()), graph)
    assert scorer.score(rows(digits[:11])).equals(Scorer(denoiser, config()).score(rows(digits[:11])))
    assert scorer.launcher.said.startswith(f"{PLAIN}: as a CUDA graph it fails (")
    assert why in scorer.launcher.said
    assert len([record for record in caplog.records if why in record.message]) == 1


def test_other_shapes_are_recorded_anew(tiny_model, digits):
    denoiser = load_model(str(tiny_model))
    scorer = recorded(Scorer(denoiser, config()), Rerun)
    scorer.score(rows(digits[:8]))
    scorer.batch.halve()
    scorer.score(rows(digits[:8]))
    assert Rerun.recorded == 2


def test_a_denoiser_that_is_no_network_is_not_recorded(digits):
    denoiser = vg.GaussianDenoiser(0.0, 0.5)
    denoiser.image_shape = (1, 8, 8)
    scorer = recorded(Scorer(denoiser, config()), Rerun)
    scorer.score(rows(digits[:8]))
    assert Rerun.recorded == 0
    assert scorer.launcher.said == PLAIN


def test_rows_without_numbers_are_no_difference(tiny_model, digits):
    """A model that answers with NaN for an image does so in a replay."""
    denoiser: Any = load_model(str(tiny_model))
    network, second = denoiser.network, torch.tensor([1])
    denoiser.network = lambda x, labels: network(x, labels).index_fill(0, second, float("nan"))
    scorer = recorded(Scorer(denoiser, config()), Rerun)
    found = scorer.score(rows(digits[:8]))
    assert found["status"].to_pylist() == ["ok", "non_finite", "ok", "ok"] * 2
    assert scorer.launcher.said.startswith("as a CUDA graph")


def test_images_of_another_row_are_not_seen(tiny_model, digits):
    """Results of one micro-batch are copied before the next one overwrites them."""
    denoiser = load_model(str(tiny_model))
    scorer = recorded(Scorer(denoiser, config()), Rerun)
    found = scorer.score(rows(digits[:12]))
    again = recorded(Scorer(denoiser, config()), Rerun).score([replace(row) for row in rows(digits[:12])[::-1]])
    assert again["growth"].to_pylist()[::-1] == found["growth"].to_pylist()
