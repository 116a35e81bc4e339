from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

import volgrowth as vg
from volgrowth.audit.scoring import scorer as scorer_module
from volgrowth.audit.scoring.measures import Launched, Sent
from volgrowth.audit.scoring.scorer import Scorer
from volgrowth.audit.workers.fitting import GROW_AFTER
from volgrowth.config import AuditConfig, VolumeMeasure
from volgrowth.errors import EngineError
from volgrowth.models import load_model
from volgrowth.records import SCORES, Failure, Status
from volgrowth.sources import Row, encode_png


def config(**settings: object) -> AuditConfig:
    return AuditConfig.build(model="m", data="d", output="o", **{"batch_size": 8, **settings})


def rows(images: np.ndarray, start: int = 0) -> list[Row]:
    return [Row(start + k, f"id-{start + k}", f"s#{start + k}", encode_png(image)) for k, image in enumerate(images)]


class Limited(vg.GaussianDenoiser):
    """A device on which only so many images fit, for a while."""

    image_shape = (1, 8, 8)

    def __init__(self, fits: int, until: int | None = None):
        super().__init__(0.0, 0.5)
        self.fits, self.until, self.refused = fits, until, 0

    def noise(self, y, noise_level):
        if len(y) > self.fits and (self.until is None or self.refused < self.until):
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().noise(y, noise_level)


def test_one_record_per_row_in_order_whatever_is_wrong(digits):
    good = rows(digits[:6])
    broken = [
        Row(6, "a", "s", b""),
        Row(7, "b", "s", b"no image"),
        Row(8, "c", "s", encode_png(digits[0])[:50]),
        Row(9, "d", "s", None, "file not found"),
        Row(10, "e", "s", encode_png(np.zeros((1, 2, 100), np.uint8))),
        Row(11, "f", "s", encode_png(np.zeros((1, 300, 300), np.uint8))),
    ]
    everything = [*good[:3], *broken, *good[3:]]
    table = Scorer(Limited(99), config(max_pixels=80_000)).score(everything)
    assert table.schema.equals(SCORES)
    assert table.column("row").to_pylist() == [row.row for row in everything]
    status = dict(zip(table.column("row").to_pylist(), table.column("status").to_pylist(), strict=True))
    assert [status[k] for k in range(6)] == ["ok"] * 6
    assert [status[k] for k in range(6, 12)] == ["undecodable"] * 4 + ["wrong_shape", "too_large"]
    for record in table.to_pylist():
        assert (record["error"] is None) == (record["status"] == "ok")
        assert (record["growth"] is None) == (record["status"] != "ok")
        assert (record["png_bytes"] is None) == (record["status"] != "ok")
    assert "file not found" in table.column("error").to_pylist()[6]


def test_scores_do_not_depend_on_how_rows_are_cut_to_the_bit(tiny_model, digits):
    denoiser = load_model(str(tiny_model))
    whole = Scorer(denoiser, config()).score(rows(digits[:21]))
    for cuts in ([0, 5, 21], [0, 8, 9, 17, 21], list(range(22))):
        parts = [Scorer(denoiser, config()).score(rows(digits[a:b], a)).to_pylist() for a, b in pairwise(cuts)]
        assert [record for part in parts for record in part] == whole.to_pylist()


def test_bad_rows_do_not_change_their_neighbours(tiny_model, digits):
    scorer = Scorer(load_model(str(tiny_model)), config())
    clean = scorer.score(rows(digits[:10])).to_pylist()
    items = rows(digits[:10])
    mixed = scorer.score([*items[:4], Row(77, "x", "s", b"junk"), *items[4:]]).to_pylist()
    assert [record for record in mixed if record["row"] != 77] == clean


def test_memory_that_runs_out_halves_the_batch_and_rows_say_so(digits):
    table = Scorer(Limited(2), config()).score(rows(digits[:9]))
    assert table.column("batch").to_pylist() == [2] * 9
    full = Scorer(Limited(99), config()).score(rows(digits[:9]))
    assert full.column("batch").to_pylist() == [8] * 9
    np.testing.assert_allclose(table.column("growth").to_numpy(), full.column("growth").to_numpy(), rtol=1e-5)


def test_a_machine_without_memory_left_is_met_as_a_device_is(digits, monkeypatch):
    stack = np.stack

    def limited(arrays, *args):
        if len(arrays) > 2:
            raise MemoryError("Unable to allocate 16 GiB")
        return stack(arrays, *args)

    monkeypatch.setattr("volgrowth.audit.scoring.scorer.np.stack", limited)
    assert Scorer(Limited(99), config()).score(rows(digits[:5])).column("batch").to_pylist() == [2] * 5


def test_the_batch_grows_back_when_memory_returns(digits):
    scorer = Scorer(Limited(4, until=1), config())
    table = scorer.score(rows(np.resize(digits, (4 * (GROW_AFTER + 4), 1, 8, 8))))
    assert set(table.column("batch").to_pylist()) == {4, 8}
    assert scorer.batch.size == 8


def test_one_image_that_does_not_fit_is_an_error_with_a_fix(digits):
    with pytest.raises(EngineError, match="one image does not fit"):
        Scorer(Limited(0), config()).score(rows(digits[:3]))


def test_other_runtime_errors_are_not_taken_for_memory(digits):
    class Wrong(Limited):
        def noise(self, y, noise_level):
            raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        Scorer(Wrong(9), config()).score(rows(digits[:3]))


def test_nothing_in_nothing_out():
    assert Scorer(Limited(9), config()).score([]).num_rows == 0


@pytest.mark.parametrize("status", [Status.CRASHED, Status.TIMED_OUT])
def test_rows_known_to_fail_are_recorded_and_not_looked_at(tiny_model, digits, status):
    scorer = Scorer(load_model(str(tiny_model)), config())
    images = rows(digits[:10])
    images[3] = replace(images[3], data=b"what would end the process")
    table = scorer.score(images, {3: Failure("as was seen", status)})
    assert table.column("status").to_pylist() == ["ok"] * 3 + [status] + ["ok"] * 6
    assert table.column("error")[3].as_py() == "as was seen"
    whole = scorer.score(rows(digits[:10])).to_pylist()
    assert [row for row in table.to_pylist() if row["row"] != 3] == [row for row in whole if row["row"] != 3]


def test_results_are_fetched_while_the_device_is_at_the_next_micro_batch(digits, monkeypatch):
    happened = []
    launch = scorer_module.launch_images

    def told(name, function):
        def tell(*arguments):
            happened.append(name)
            return function(*arguments)

        return tell

    monkeypatch.setattr(scorer_module, "launch_images", told("launch", launch))
    monkeypatch.setattr(Launched, "sent", told("sent", Launched.sent))
    monkeypatch.setattr(Sent, "fetch", told("fetch", Sent.fetch))
    Scorer(Limited(9), config()).score(rows(digits[:32]))
    one = ["launch", "sent"]  # the copy of the results does not queue behind the next launch
    assert happened == [*one, *one, "fetch", *one, "fetch", *one, "fetch", "fetch"]


FEW_LEVELS = {"preset": "volume", "num_levels": 3}
TRACES = config(measure=FEW_LEVELS)


class Underivable(vg.GaussianDenoiser):
    """A Gaussian by a library that knows nothing of derivatives."""

    image_shape = (1, 8, 8)

    def noise(self, y, noise_level):
        return torch.from_numpy(np.copy(super().noise(y, noise_level).numpy()))


@pytest.mark.parametrize("measure", [{"preset": "volume", "num_levels": 5}, {"preset": "paper", "derivative": "jvp"}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_a_derivative_differences_are_taken_and_it_is_said_once(digits, measure, dtype, caplog, monkeypatch):
    scorer_module.say_once.cache_clear()
    settings = config(measure=measure, dtype=dtype)
    known = Scorer(Limited(99), settings).score(rows(digits[:20]))
    loaded = []

    def precise():
        loaded.append(1)
        return Underivable(0.0, 0.5)

    scorer = Scorer(Underivable(0.0, 0.5), settings, precise)
    found = scorer.score(rows(digits[:20]))
    assert found["status"].unique().to_pylist() == ["ok"]
    for name in ("growth", "log_likelihood"):
        if known[name].null_count == 0:
            np.testing.assert_allclose(found[name].to_numpy(), known[name].to_numpy(), rtol=2e-3, err_msg=name)
    assert scorer.differenced
    assert len([record for record in caplog.records if "no derivative" in record.message]) == 1
    assert loaded == ([1] if dtype == "bfloat16" else [])


def test_an_operation_without_a_backward_pass_is_noticed_too(digits):
    class Copy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.clone()

    class Own(Limited):
        def noise(self, y, noise_level):
            return Copy.apply(super().noise(y, noise_level))

    scorer = Scorer(Own(99), TRACES)
    found, known = (each.score(rows(digits[:9]))["growth"].to_numpy() for each in (scorer, Scorer(Limited(99), TRACES)))
    np.testing.assert_allclose(found, known, rtol=2e-3)
    assert "backward" in str(scorer.differenced)


def test_what_differences_cost_is_counted(digits):
    exact = Scorer(Limited(99), TRACES).score(rows(digits[:2]))["nfe"][0].as_py()
    differenced = Scorer(Underivable(0.0, 0.5), TRACES).score(rows(digits[:2]))["nfe"][0].as_py()
    assert differenced == exact + 3 * VolumeMeasure().num_probes


@pytest.mark.parametrize("preset", ["screen", "standard"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_forward_passes_ask_for_no_derivative(digits, preset, dtype):
    settings = config(measure={"preset": preset}, dtype=dtype)
    scorer, known = Scorer(Underivable(0.0, 0.5), settings), Scorer(Limited(99), settings)
    found = scorer.score(rows(digits[:9]))
    assert scorer.differenced is None
    assert found.equals(known.score(rows(digits[:9])))


def test_differences_of_a_low_precision_need_a_network_in_float32(digits):
    with pytest.raises(EngineError, match=r"no derivative .* expected dtype float32"):
        Scorer(Underivable(0.0, 0.5), config(dtype="bfloat16", measure=FEW_LEVELS)).score(rows(digits[:2]))


def test_an_error_that_comes_and_goes_is_not_taken_for_a_missing_derivative(digits):
    class Shaky(Limited):
        def noise(self, y, noise_level):
            self.refused += 1
            if self.refused == 3:
                raise RuntimeError("CUDA error: of another kind")
            return super().noise(y, noise_level)

    with pytest.raises(RuntimeError, match="of another kind"):
        Scorer(Shaky(9), TRACES).score(rows(digits[:3]))


@pytest.mark.parametrize("able", [True, False])
def test_activations_are_computed_twice_where_one_image_does_not_fit(tiny_model, digits, able, monkeypatch, caplog):
    scorer_module.say_once.cache_clear()
    known = Scorer(load_model(str(tiny_model)), TRACES).score(rows(digits[:3]))
    denoiser: Any = load_model(str(tiny_model))
    network = denoiser.network

    def tight(x, labels):
        if x.requires_grad and not denoiser.module.is_gradient_checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return network(x, labels)

    denoiser.network = tight
    monkeypatch.setattr(denoiser.module, "_supports_gradient_checkpointing", able)
    scorer = Scorer(denoiser, TRACES)
    if not able:
        with pytest.raises(EngineError, match=r"one image does not fit.*or a preset of forward passes"):
            scorer.score(rows(digits[:3]))
        return
    table = scorer.score(rows(digits[:3]))
    np.testing.assert_allclose(table["growth"].to_numpy(), known["growth"].to_numpy(), rtol=1e-4)
    assert "activations are computed twice" in caplog.text


def test_memory_that_another_process_holds_is_said(digits, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (4 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 6 << 30)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with pytest.raises(EngineError, match=r"\(70.0 of 80.0 GiB are held by other processes, which nvidia-smi names\)"):
        Scorer(Limited(0), config()).score(rows(digits[:3]))
