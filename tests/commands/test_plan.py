import json
from itertools import pairwise

import numpy as np
import pytest

import volgrowth as vg
from tests.audit.output.test_manifest import manifest
from volgrowth.audit.output.manifest import Manifest
from volgrowth.audit.scoring.pilot import Piece
from volgrowth.cli import run_command
from volgrowth.commands.plan import PIECES, Forecast, _stretches, describe_forecast, predict


def forecast(
    plan: Manifest, seconds: list[float], workers: int = 1, price: float | None = None, share: float | None = None
) -> Forecast:
    """With pieces of ten rows that took so long."""
    config = vg.AuditConfig.build(model="m", data="d", output="o", gpus_per_worker=share)
    pieces = [Piece(10, 0, each, 0.5, 2**30) for each in seconds]
    return predict(plan, config, pieces, 16, workers, "cpu", 5.0, price)


def test_one_worker_does_one_row_after_the_other():
    found = forecast(manifest(1000, 200, shard_size=100), [20.0] * 4, price=3.0)
    assert found.wall_hours == pytest.approx([(5 + 1200 * 2 + 12 * 0.5) / 3600] * 3)
    assert found.device_hours == pytest.approx(found.wall_hours)
    assert found.money
    assert found.money == pytest.approx([3 * hours for hours in found.wall_hours])
    assert (found.rows, found.evaluations, found.peak_memory) == (1200, 1200 * 4, 2**30)


def test_workers_share_the_shards_and_the_busiest_one_counts():
    plan = manifest(1000, shard_size=100)  # ten shards, four for the busiest
    found = forecast(plan, [20.0] * 4, workers=3)
    assert found.wall_hours.middle == pytest.approx((5 + 4 * (100 * 2 + 0.5)) / 3600)
    assert found.device_hours.middle == pytest.approx(3 * found.wall_hours.middle)
    assert forecast(plan, [20.0], workers=99).workers == 10


def test_workers_that_share_a_gpu_pay_for_it_once():
    plan = manifest(1000, shard_size=100)
    for share, gpus in ((0, 4), (0.5, 2), (1, 4), (2, 8)):
        found = forecast(plan, [20.0] * 4, workers=4, price=3.0, share=share)
        assert found.money
        assert found.money == pytest.approx([3 * gpus * hours for hours in found.wall_hours])


def test_the_interval_covers_what_it_promises():
    random, plan = np.random.default_rng(0), manifest(100_000, shard_size=1000)
    covered = 0
    for _ in range(400):
        found = forecast(plan, (random.gamma(9, 1 / 9, PIECES) * 10).tolist())
        covered += found.wall_hours.low <= (5 + 100_000 + 100 * 0.5) / 3600 <= found.wall_hours.high
    assert 0.86 <= covered / 400 <= 0.94


@pytest.mark.parametrize("rows", [1, 10, 1000, 100_000])
def test_stretches_lie_apart_in_the_data_set(rows):
    found = list(_stretches(manifest(rows), 0, 64))
    assert 1 <= len(found) <= PIECES
    assert all(0 <= part.start < part.stop <= rows and part.rows <= 64 for part in found)
    assert all(one.stop <= other.start for one, other in pairwise(found))


def test_the_plan_says_how_few_memorized_images_could_be_seen_and_what_more_held_out_ones_buy():
    found = forecast(manifest(20_000, 400, shard_size=1000), [20.0] * 4)
    said = describe_forecast(found).splitlines()
    assert [each.held for each in found.reach] == [400, 1200, 4000]
    assert [each.by_counting for each in found.reach] == [499, 167, 50]
    clear, clearer = zip(*(each.with_tail or () for each in found.reach), strict=True)
    assert all(one < other / 2 for one, other in zip(clearer, clear, strict=True))
    assert clear[0] < 499 / 2
    assert list(clear) == sorted(clear, reverse=True)
    end = f"499 by counting alone, with the usual tail {clear[0]} of evidence 5 or {clearer[0]} of evidence 10"
    assert said[-3].endswith(f"400 held out (these): {end}")


def test_a_plan_without_held_out_images_says_so():
    said = describe_forecast(forecast(manifest(1000, shard_size=1000), [20.0] * 4)).splitlines()
    assert said[-5].startswith("without held-out images the error rate will be an assumption")
    few = describe_forecast(forecast(manifest(1000, 100, shard_size=1000), [20.0] * 4)).splitlines()
    assert "100 held out (these): 100 by counting alone, too few for a tail" in few[-3]


def test_a_pilot_says_what_the_audit_will_take(tiny_model, digit_file, tmp_path, capsys):
    out = str(tmp_path / "out")
    arguments = [str(tiny_model), str(digit_file), "--output", out, "--engine", "local", "--shard-size", "40"]
    assert run_command(["plan", *arguments, "--price", "2.5", "--set", "batch_size=8"]) == 0
    opened, aside, planned, *_ = capsys.readouterr().out.splitlines()
    assert opened.startswith("opened: 150 rows of 1 parquet file")
    assert aside == "left aside: nothing"
    assert planned == "150 images, 600 network evaluations, 1 workers on cpu"
    kept = json.loads((tmp_path / "out/.plan/forecast.json").read_text())
    assert kept["batch_size"] == 8
    assert kept["money"] == pytest.approx([2.5 * hours for hours in kept["device_hours"]])
    assert kept["wall_hours"][1] <= kept["wall_hours"][0] <= kept["wall_hours"][2]
    assert kept["peak_memory"] > 2**20
    # what the pilot left is no obstacle
    assert run_command(["audit", *arguments]) == 0


def test_the_batch_size_is_chosen_where_none_is_set(tiny_model, digit_file, tmp_path):
    config = vg.AuditConfig.build(
        model=str(tiny_model), data=str(digit_file), output=str(tmp_path / "out"), engine="local"
    )
    from volgrowth.commands.plan import plan_audit

    found = plan_audit(config, quiet=True)
    assert found.batch_size in {2**power for power in range(8)}
    assert f"--set batch_size={found.batch_size}" in describe_forecast(found)
    assert "cost" not in describe_forecast(found)
