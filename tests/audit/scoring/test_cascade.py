"""Audits that screen every row and measure few."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import volgrowth as vg
from tests.audit.output.test_manifest import manifest
from volgrowth.analysis.calibration.screening import MOST_SAMPLED
from volgrowth.analysis.findings import analyse
from volgrowth.audit.output.manifest import SCORES_FOLDER
from volgrowth.audit.output.result import Audit
from volgrowth.audit.scoring.cascade import SHARED, Chosen, rows_mark
from volgrowth.audit.scoring.pilot import Piece
from volgrowth.audit.scoring.worker import ScoringWorker
from volgrowth.cli import run_command
from volgrowth.commands.plan import predict
from volgrowth.config import SCREEN_EVALUATIONS, StandardMeasure
from volgrowth.demo.cases import write_image_parquet
from volgrowth.errors import DataError, OutputError, UsageError
from volgrowth.report.words import cascade_sentences
from volgrowth.storage.store import Store

WHOLE = StandardMeasure().evaluations
REST = StandardMeasure().evaluations_after_screen


@pytest.fixture(scope="module")
def sets(digits, tmp_path_factory):
    """150 digits, thirty of which are there twice and one of which is no image, and 120 others."""
    folder = tmp_path_factory.mktemp("sets")
    images = np.concatenate([digits[:120], digits[:30]])
    write_image_parquet(folder / "data.parquet", images, [f"digit-{row}" for row in range(150)])
    table = pq.read_table(folder / "data.parquet")
    image = table["image"].to_pylist()
    image[70] = {**image[70], "bytes": b"no image"}
    index = table.schema.get_field_index("image")
    table = table.set_column(index, table.field(index), [image])
    pq.write_table(table, folder / "data.parquet")
    write_image_parquet(folder / "held.parquet", digits[200:320], [f"held-{row}" for row in range(120)])
    return folder


@pytest.fixture(scope="module")
def audit(tiny_model, sets):
    def run(output: Path, **settings: object) -> Audit:
        data = {"data": str(sets / "data.parquet"), "holdout": str(sets / "held.parquet")}
        known = {"model": str(tiny_model), **data, "engine": "local", "shard_size": 40, "screen_share": 0.2}
        return vg.run_audit(vg.AuditConfig.build(output=str(output), **{**known, **settings}), quiet=True)

    return run


@pytest.fixture(scope="module")
def whole(audit, tmp_path_factory):
    return audit(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def cascade(audit, tmp_path_factory):
    return audit(tmp_path_factory.mktemp("cascade"), cascade=True)


def test_measured_rows_have_the_scores_of_a_whole_audit(whole, cascade):
    measured = cascade.scores["growth"].is_valid()
    assert 10 < measured.to_numpy().sum() < 60
    for a, b in (
        (cascade.scores.filter(measured), whole.scores.filter(measured)),
        (cascade.holdout_scores, whole.holdout_scores),
    ):
        assert a.drop_columns("nfe").equals(b.drop_columns("nfe"))
    assert set(cascade.scores.filter(measured)["nfe"].to_pylist()) == {SCREEN_EVALUATIONS + REST}
    assert set(cascade.holdout_scores["nfe"].to_pylist()) == {WHOLE}


def test_rows_that_were_only_screened_keep_everything_else(whole, cascade):
    out = cascade.scores["growth"].is_null()
    one, other = cascade.scores.filter(out), whole.scores.filter(out)
    for name in ("row", "image_id", "status", "error", "png_bytes", "variance", "phash", "content_hash", *SHARED):
        assert one[name].equals(other[name])
    for name in ("growth", "rates", "lid", "growth_error", "log_likelihood"):
        assert one[name].null_count == len(one)
    scored = one.filter(one["content_hash"].is_valid())
    assert set(scored["nfe"].to_pylist()) == {SCREEN_EVALUATIONS}
    assert scored["screen"].null_count == 0
    assert cascade.scores["status"][70].as_py() == "undecodable"
    assert cascade.scores["screen"][70].as_py() is cascade.scores["nfe"][70].as_py() is None


def test_evaluations_are_counted(cascade):
    found, measured = cascade.summary["cascade"], len(cascade.scores) - cascade.scores["growth"].null_count
    spent = 149 * SCREEN_EVALUATIONS + REST * measured + 120 * WHOLE
    assert cascade.summary["run"]["evaluations"] == spent
    assert found["evaluations_saved"] == 269 * WHOLE - spent > 0
    assert found["evaluations_share"] == spent / (269 * WHOLE)
    assert found["rows_measured"] == measured
    assert found["kept"] + found["screened_out"] == found["images"] <= 119


def test_copies_are_measured_once(cascade):
    growth = cascade.scores["growth"].to_numpy()
    first, second = growth[:30], growth[120:]
    assert np.isnan(second).all()
    assert np.isfinite(first).any()
    for name in ("p_value", "q_value", "memorized"):
        column = cascade.findings[name].to_pylist()
        assert column[:30] == column[120:]


def test_findings_are_those_of_the_tables(cascade):
    again = analyse(cascade.scores, cascade.holdout_scores, screen_share=0.2)
    assert again.findings.drop_columns("verified_hits").equals(cascade.findings.drop_columns("verified_hits"))
    passed = Chosen.load(cascade.store, "passed", 150)
    sampled = Chosen.load(cascade.store, "sampled", 150)
    assert passed is not None
    assert sampled is not None
    assert Chosen.load(cascade.store, "passed", 151) is None
    with pytest.MonkeyPatch.context() as patch:  # a version with another screen
        patch.setattr("volgrowth.audit.scoring.cascade._SCREEN", "1 loss + 2 noise_norm")
        assert Chosen.load(cascade.store, "passed", 150) is None
        assert Chosen.load(cascade.store, "passed") is not None
    assert again.screening is not None
    assert again.screening.passing.tolist() == passed.rows.tolist()
    assert len(sampled.rows) == int(0.05 * cascade.summary["cascade"]["screened_out"])
    measured = np.flatnonzero(cascade.scores["growth"].is_valid().to_numpy())
    assert measured.tolist() == sorted([*passed.rows.tolist(), *sampled.rows.tolist()])
    assert set(cascade.findings.take(sampled.rows)["p_value"].to_pylist()) == {1.0}


class Stopped(BaseException):
    """What nothing catches, as the end of a process is."""


def files(folder: Path) -> dict[str, bytes]:
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in folder.glob("*/part-*.parquet")}


@pytest.mark.parametrize("after", [1, 3, 5])
def test_an_interrupted_cascade_ends_the_same_to_the_bit(audit, cascade, monkeypatch, tmp_path, after):
    """It stops in the middle of a stage: just before a shard is published, or just after, before anyone was told."""
    complete, calls = ScoringWorker.complete, []

    def stop(self, shard, rows, stage):
        calls.append(stage)
        if len(calls) == after:
            if after > 1:
                complete(self, shard, rows, stage)
            raise Stopped
        return complete(self, shard, rows, stage)

    with monkeypatch.context() as patch:
        patch.setattr(ScoringWorker, "complete", stop)
        with pytest.raises(Stopped):
            audit(tmp_path / "out", cascade=True)
    resumed = audit(tmp_path / "out", cascade=True)
    assert resumed.scores.equals(cascade.scores)
    assert resumed.findings.equals(cascade.findings)
    assert files(tmp_path / "out") == files(Path(cascade.store.url))
    assert resumed.summary["cascade"] == cascade.summary["cascade"]


def test_a_shard_that_is_measured_again_keeps_what_it_cost(cascade):
    """A worker whose answer was lost does it twice."""
    passed = Chosen.load(cascade.store, "passed")
    assert passed is not None
    shard = next(shard for shard in cascade.frozen.shards if passed.of_shard(shard))
    before = cascade.store.read_table(shard.name)
    worker = ScoringWorker(
        vg.AuditConfig.build(**cascade.manifest["config"], output=cascade.store.url), cascade.frozen, "cpu"
    )
    worker.prepare()
    worker.complete(shard, passed.of_shard(shard), "passed")
    assert cascade.store.read_table(shard.name).equals(before)
    assert cascade.store.read_footer(shard.name)[1]["passed"] == rows_mark(passed.of_shard(shard))


def test_a_larger_sample_bounds_what_was_lost(audit, tmp_path):
    """All that is screened out: the whole audit's flags are known."""
    found = audit(tmp_path / "out", cascade=True, screen_sample=1000).summary["cascade"]
    assert found["sample"] == found["screened_out"]
    assert found["flags_lost_at_most"] == found["missed_in_sample"] == 0


def test_retrying_and_extending_choose_anew(audit, sets, digits, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.parquet").write_bytes((sets / "data.parquet").read_bytes())
    settings = {"cascade": True, "data": str(folder)}
    first = audit(tmp_path / "out", **settings)
    write_image_parquet(folder / "b.parquet", digits[400:460], [f"more-{row}" for row in range(60)])
    config = vg.AuditConfig.build(**{**first.manifest["config"], "engine": "local"}, output=str(tmp_path / "out"))
    grown = vg.run_audit(config, quiet=True, extend=True)
    passed = Chosen.load(Store(str(tmp_path / "out")), "passed", 210)
    assert passed is not None
    assert (passed.rows >= 150).any()
    assert grown.findings["p_value"].null_count == 1
    again = vg.run_audit(config, quiet=True, retry_failed=True)
    assert again.scores.equals(grown.scores)


def test_it_goes_through_every_command(cascade, whole, tmp_path, capsys):
    out = cascade.store.url
    page = (Path(out) / "report.html").read_text()
    assert "This audit is a cascade" in page
    assert "Evaluations saved" in page
    assert run_command(["report", out]) == 0
    assert run_command(["verify", out, "--samples", "20", "--engine", "local"]) == 0
    for options in (["--fdr", "0.1"], ["--top-k", "5"], ["--max-score", "0.0"]):
        assert run_command(["curate", out, *options, "--list", str(tmp_path / f"list{options[0]}.csv")]) == 0
    assert run_command(["check", out, "--max-flagged", "1"]) == 0
    assert run_command(["diff", out, whole.store.url]) == 0
    vg.open_audit(out).to_pandas()
    assert "images" in repr(vg.open_audit(out))
    capsys.readouterr()


def test_the_command_line_says_what_was_left_out(tiny_model, sets, tmp_path, capsys):
    command = ["audit", str(tiny_model), str(sets / "data.parquet"), "--holdout", str(sets / "held.parquet")]
    assert run_command([*command, "--output", str(tmp_path / "out"), "--engine", "local", "--cascade"]) == 0
    said = capsys.readouterr()
    assert "This audit is a cascade: of 11" in said.out
    assert "were measured at random" in said.out
    found = json.loads((tmp_path / "out/summary.json").read_text())["cascade"]
    assert ("can only be had by an audit without --cascade" in said.err) == (found["recall_at_least"] is not None)


@pytest.mark.parametrize(("preset", "growth"), [("volume", ["growth"]), ("paper", [])])
def test_every_preset_that_costs_more_has_a_cascade(audit, preset, growth, tmp_path):
    """Growth of all dimensions is added to the screen's parts of the evidence, that of a few axes is left aside."""
    measure = {"preset": preset, **({"num_steps": 3} if preset == "paper" else {"num_levels": 5})}
    finished = audit(tmp_path / "out", cascade=True, measure=measure)
    assert 0 < finished.summary["cascade"]["rows_measured"] < 60
    assert finished.findings["p_value"].null_count == 1
    assert finished.findings["loss_p_value"].null_count == 1
    assert list(finished.summary["calibration"]["evidence"]["parts"]) == [*growth, "loss", "noise_norm"]


def test_a_cascade_that_makes_no_sense_is_refused(audit, cascade, other_held, tmp_path):
    for settings, why in (
        ({"holdout": None}, "cascade needs a holdout"),
        ({"measure": {"preset": "paper"}}, "cascade saves nothing where the measure takes 2 evaluations"),
        ({"screen_share": 0.0}, "screen_share"),
    ):
        with pytest.raises(UsageError, match=why):
            audit(tmp_path / "out", **{"cascade": True, **settings})
    with pytest.raises(UsageError, match="it is a cascade, which did not measure most rows"):
        audit(tmp_path / "out", reference=cascade.store.url)
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="too few for a cascade"):
        audit(tmp_path / "out", cascade=True, holdout=str(other_held))


@pytest.fixture
def other_held(digits, tmp_path):
    """Held-out images most of which are audited."""
    write_image_parquet(tmp_path / "other.parquet", digits[80:160], [str(k) for k in range(80)])
    return tmp_path / "other.parquet"


def test_shards_of_held_out_rows_are_never_measured_again(cascade):
    chosen = Chosen("passed", np.array([3, 41, 79]), 150)
    by_shard = {shard.name: chosen.of_shard(shard) for shard in cascade.frozen.shards}
    assert by_shard[f"{SCORES_FOLDER}/part-00000.parquet"] == [3]
    assert by_shard[f"{SCORES_FOLDER}/part-00001.parquet"] == [41, 79]
    assert sum(map(len, by_shard.values())) == 3


def test_a_plan_counts_what_a_cascade_spends():
    config = vg.AuditConfig.build(model="m", data="d", output="o", holdout="h", cascade=True, screen_share=0.1)
    found = predict(manifest(1000, 200, shard_size=100), config, [Piece(10, 0, 15.0, 0.0, 1)], 16, 1, "cpu", 0.0, None)
    spent = 1000 * (SCREEN_EVALUATIONS + (0.1 + MOST_SAMPLED) * REST) + 200 * WHOLE
    assert found.evaluations == round(spent)
    assert found.wall_hours.middle == pytest.approx(spent * 1.5 / WHOLE / 3600)


def test_what_is_said_of_the_loss(cascade):
    known = {**cascade.summary["cascade"], "images": 1000, "kept": 60, "screened_out": 940, "sample": 500}
    none = {**known, "missed_in_sample": 0, "recall_at_least": None, "flags_lost_at_most": 0}
    assert (
        "none of them would have been flagged, and a whole audit would have flagged none." in cascade_sentences(none)[1]
    )
    some = {**known, "missed_in_sample": 2, "recall_at_least": 0.75, "flags_lost_at_most": 7}
    assert (
        "500 were measured at random: 2 of them would have been flagged. With 95% confidence"
        in cascade_sentences(some)[1]
    )
    assert (
        "lost no more than 7 flags, and 75% or more of a whole audit's flags were found." in cascade_sentences(some)[1]
    )
    assert len(cascade_sentences({**some, "screened_out": 0})) == 1
    assert cascade_sentences(None) == []


def test_chosen_rows_of_a_fragment_that_is_gone_are_an_error_with_a_fix(tmp_path):
    store, frozen = Store(str(tmp_path)), manifest(25, shard_size=10)
    chosen = Chosen("passed", np.array([3, 12]), 25)
    footers: dict[str, dict[str, str]] = {"scores/part-00000.parquet": {}, "scores/part-00001.parquet": {}}
    assert [shard.index for shard in chosen.todo(store, frozen, footers)] == [0, 1]
    with pytest.raises(OutputError, match=r"part-00001.parquet is missing or not whole: .* run the audit again"):
        chosen.todo(store, frozen, {"scores/part-00000.parquet": {}})
