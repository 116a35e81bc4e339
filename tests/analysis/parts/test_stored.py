"""An analysis in parts gives what one in memory does, to the bit, whatever happens to it on the way."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from jobs.benchmark.cost import made_up_audit
from jobs.benchmark.processes import ROOT
from volgrowth.analysis.calibration import expected_scores
from volgrowth.analysis.findings import WholeAnalysis, analyse
from volgrowth.analysis.parts import database, stored
from volgrowth.analysis.parts.database import check_room
from volgrowth.analysis.parts.stored import StoredRows
from volgrowth.audit.output.fragments import publish_fragment
from volgrowth.audit.output.judged import JUDGED_FOLDER, ScoreReader
from volgrowth.audit.output.manifest import SCORES_FOLDER, Shard
from volgrowth.audit.output.result import Audit, open_audit
from volgrowth.commands import analysing
from volgrowth.errors import DamagedError, OutputError
from volgrowth.storage.store import Store

ROWS, SHARD, HELD = 1_100, 250, 700

KILLED = f"""
import os, signal, sys
from importlib import import_module
from pathlib import Path
from jobs.benchmark.cost import made_up_audit
from volgrowth.analysis.calibration import expected_scores
from volgrowth.analysis.parts import stored

made_up_audit.SHARD_ROWS, made_up_audit.HELD_OUT = {SHARD}, {HELD}
stored.FEW, expected_scores.ROUNDS = 0, 20
module, *names, last = sys.argv[2].split(":")
place = import_module(module)
for name in names:
    place = getattr(place, name)
real, left = getattr(place, last), [int(sys.argv[3])]

def deadly(*given, **named):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*given, **named)

setattr(place, last, deadly)
made_up_audit.finish_here(Path(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few the rows are, they are judged into part files; regressions are fitted less closely."""
    monkeypatch.setattr(made_up_audit, "SHARD_ROWS", SHARD)
    monkeypatch.setattr(made_up_audit, "HELD_OUT", HELD)
    monkeypatch.setattr(expected_scores, "ROUNDS", 20)
    monkeypatch.setattr(stored, "FEW", 0)


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    """An audit of made-up scores that only has to be analysed."""
    made_up_audit.make_scores(tmp_path / "audit", ROWS)
    return tmp_path / "audit"


def in_memory(folder: Path) -> WholeAnalysis:
    store = Store(str(folder / "out"))
    found = Audit(store, store.read_json("manifest.json"))
    return analyse(found.scores, found.holdout_scores)


def finished(folder: Path) -> Audit:
    made_up_audit.finish_here(folder)
    return open_audit(str(folder / "out"))


def same(folder: Path) -> bool:
    found, whole = finished(folder), in_memory(folder)
    assert not (folder / "out" / JUDGED_FOLDER).exists()
    assert whole.holdout is not None
    assert found.holdout_findings is not None
    return found.findings.equals(whole.findings) and found.holdout_findings.equals(whole.holdout)


def test_parts_give_what_a_table_in_memory_does(audit: Path) -> None:
    assert same(audit)
    found = open_audit(str(audit / "out"))
    assert pc.sum(found.findings["memorized"]).as_py() is not None
    assert pc.any(pc.greater(found.findings["copies"], 1)).as_py()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "call", "parts"),
    [
        ("volgrowth.analysis.parts.stored:read_fragment", 3, 0),
        ("volgrowth.commands.analysing:judge_shard", 4, 2),
        ("volgrowth.analysis.parts.verdicts:Verdicts:see", 3, 5),
        ("volgrowth.analysis.parts.verdicts:Verdicts:findings", 3, 5),
        ("volgrowth.commands.analysing:remove_judged", 1, 5),
    ],
    ids=["survey", "judging", "counting", "writing", "removing"],
)
def test_a_kill_leaves_the_same_findings(
    audit: Path, where: str, call: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was judged before the kill is not judged again."""
    killed = subprocess.run([sys.executable, "-c", KILLED, str(audit), where, str(call)], cwd=ROOT, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    left = list((audit / "out" / JUDGED_FOLDER).glob("*.parquet"))
    assert len(left) >= parts
    judged, real = list[str](), analysing.judge_shard

    def noted(store: Store, shard: Shard, *given: Any) -> None:
        judged.append(shard.name)
        real(store, shard, *given)

    monkeypatch.setattr(analysing, "judge_shard", noted)
    assert same(audit)
    assert len(judged) == 5 - len(left)


def edit(damage: Callable[[Path], Any]) -> Callable[..., None]:
    """Judge all shards, and do something to the part of the second one."""

    def judge(session: Any, judge: Any, reference: Any, shards: list[Shard], quiet: bool) -> None:
        analysing_judge(session, judge, reference, shards, quiet)
        damage(Path(session.store.url) / JUDGED_FOLDER / shards[1].name.rpartition("/")[2])

    analysing_judge = analysing._judge_shards
    return judge


@pytest.mark.parametrize(
    ("damage", "said"),
    [(Path.unlink, "is gone"), (lambda part: part.write_bytes(part.read_bytes()[:-100]), "is damaged")],
    ids=["gone", "cut"],
)
def test_a_part_that_is_lost_is_made_again(
    audit: Path, damage: Any, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(analysing, "_judge_shards", edit(damage))
    assert same(audit)
    assert f"{said}" in capsys.readouterr().err


def test_a_part_of_other_scores_is_not_used(audit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of one shard change after they were judged, and the audit is analysed again."""
    monkeypatch.setattr(analysing, "remove_judged", lambda store: None)
    made_up_audit.finish_here(audit)
    monkeypatch.undo()
    store = Store(str(audit / "out"))
    manifest = Audit(store, store.read_json("manifest.json")).frozen
    shard = next(shard for shard in manifest.shards if shard.folder == SCORES_FOLDER)
    scores = store.read_table(shard.name)
    changed = pc.if_else(pc.equal(scores["row"], 3), pc.add(scores["growth"], 40.0), scores["growth"])
    place = scores.column_names.index("growth")
    publish_fragment(store, manifest, shard, scores.set_column(place, scores.field(place), changed), 1)
    monkeypatch.setattr(made_up_audit, "SHARD_ROWS", SHARD)
    monkeypatch.setattr(expected_scores, "ROUNDS", 20)
    monkeypatch.setattr(stored, "FEW", 0)
    assert same(audit)
    growth = open_audit(str(audit / "out")).findings["growth"][3].as_py()
    assert growth == changed[3].as_py()


def test_a_fragment_that_vanishes_is_named(audit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = analysing._judge_shards

    def judge(session: Any, judge: Any, reference: Any, shards: list[Shard], quiet: bool) -> None:
        (Path(session.store.url) / shards[2].name).unlink()
        real(session, judge, reference, shards, quiet)

    monkeypatch.setattr(analysing, "_judge_shards", judge)
    with pytest.raises(OutputError, match=r"part-00002.parquet is missing or not whole: expected 250 rows"):
        made_up_audit.finish_here(audit)


def test_a_fragment_of_another_schema_is_named(audit: Path) -> None:
    """Growth is text in the second shard: it is not taken for numbers, nor for missing ones."""
    store = Store(str(audit / "out"))
    name = "scores/part-00001.parquet"
    scores, (_, footer) = store.read_table(name), store.read_footer(name)
    place = scores.column_names.index("growth")
    store.write_table(name, scores.set_column(place, "growth", pa.array(["much"] * len(scores))), footer)
    manifest = Audit(store, store.read_json("manifest.json")).frozen
    judged = StoredRows(store, manifest, None, lambda judge, shards: None)
    with pytest.raises(DamagedError, match=r"part-00001\.parquet is damaged") as error:
        list(judged.scores())
    assert error.value.name == name


def replace_scores(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Publish other scores of the audited rows."""
    store = Store(str(folder / "out"))
    manifest = Audit(store, store.read_json("manifest.json")).frozen
    for shard in manifest.shards:
        if shard.folder == SCORES_FOLDER:
            publish_fragment(store, manifest, shard, change(store.read_table(shard.name)), 1)


def identical(scores: pa.Table) -> pa.Table:
    """The rows with the image and the scores of one of them, apart from every tenth."""
    first = scores.filter(pc.equal(scores["status"], "ok")).slice(0, 1)
    names = [name for name in scores.column_names if name not in ("row", "image_id", "source")]
    for name in names:
        one = pa.concat_arrays([first[name].combine_chunks()] * len(scores))
        if name in ("rates", "marks", "error"):
            continue
        mask = pa.array(np.arange(len(scores)) % 10 != 0)
        mixed = pc.if_else(mask, one, scores[name].combine_chunks())
        scores = scores.set_column(scores.column_names.index(name), scores.field(name), mixed)
    return scores


def unscored(scores: pa.Table) -> pa.Table:
    for name in ("growth", "loss", "noise_norm"):
        nothing = pa.nulls(len(scores), scores.field(name).type)
        scores = scores.set_column(scores.column_names.index(name), scores.field(name), nothing)
    place = scores.column_names.index("status")
    return scores.set_column(place, scores.field(place), pa.array(["non_finite"] * len(scores)))


def long_ids(scores: pa.Table) -> pa.Table:
    """Every 25th row has an id of 100 kB."""
    ids = [f"{row} ".ljust(100_000, "x") if row % 25 == 0 else f"id-{row}" for row in scores["row"].to_pylist()]
    return scores.set_column(scores.column_names.index("image_id"), "image_id", pa.array(ids))


@pytest.mark.parametrize("change", [identical, unscored, long_ids])
def test_rows_that_are_all_alike_or_all_failed_or_have_long_ids(audit: Path, change: Any) -> None:
    replace_scores(audit, change)
    assert same(audit)


def test_rows_of_another_audit_are_read_in_any_stretch(audit: Path) -> None:
    store = Store(str(audit / "out"))
    manifest = Audit(store, store.read_json("manifest.json")).frozen
    reader = ScoreReader(store, manifest)
    for start, stop in ((0, 250), (0, 1100), (249, 251), (700, 1050), (5, 5)):
        if start < stop:
            assert reader.read(start, stop, ["row", "growth"])["row"].to_pylist() == list(range(start, stop))
    with pytest.raises(OutputError, match="has no rows 1000 to 1199: expected an audit of the same rows"):
        reader.read(1000, 1200, ["row"])


def test_a_disk_without_room_is_said_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "FEW", 0)
    check_room(ROWS)
    monkeypatch.setattr(database, "ROW_BYTES", 2**62)
    with pytest.raises(OutputError, match=r"takes up to [\d,]+ bytes of temporary files, and .* has room for [\d,]+:"):
        check_room(ROWS)


@pytest.mark.ray
def test_workers_judge_what_this_process_does(
    audit: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Very many rows are judged by the workers of the engine, which need no model."""
    real = made_up_audit._config
    changes = {"engine": "ray", "workers": 1, "model": made_up_audit.MODEL}
    monkeypatch.setattr(made_up_audit, "_config", lambda *paths: real(*paths).model_copy(update=changes))
    monkeypatch.setattr(analysing, "MANY", 0)
    monkeypatch.setattr(analysing, "judge_shard", None)  # this process does none
    assert same(audit)
