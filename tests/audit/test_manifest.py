import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volgrowth.audit.manifest import DataInfo, Manifest, freeze
from volgrowth.audit.store import Store
from volgrowth.config import EXECUTION, AuditConfig
from volgrowth.errors import OutputError
from volgrowth.records import ModelInfo

MODEL = ModelInfo("m", "UNet2DModel", (1, 8, 8), "sha256:0123456789ab", 10)


def manifest(rows: int = 10, holdout: int = 0, fingerprint: str = "f", **settings: Any) -> Manifest:
    config = AuditConfig.build(model="m", data="d", output="o", **settings)
    data = DataInfo("d", None, "parquet", rows, 1, fingerprint)
    return Manifest.plan(config, MODEL, data, replace(data, rows=holdout) if holdout else None)


@given(rows=st.integers(0, 500), holdout=st.integers(0, 500), size=st.integers(1, 200))
def test_shards_cover_every_row_once(rows, holdout, size):
    plan = manifest(rows, holdout, shard_size=size)
    for folder, count in (("scores", rows), ("holdout", holdout)):
        covered = [row for s in plan.shards if s.folder == folder for row in range(s.start, s.stop)]
        assert covered == list(range(count))
    assert len({shard.name for shard in plan.shards}) == len(plan.shards)
    assert all(0 < shard.rows <= size for shard in plan.shards)


def test_fragments_are_named_as_the_design_says():
    assert manifest(8000, shard_size=1000).shards[7].name == "scores/part-00007.parquet"


def test_a_manifest_survives_json():
    plan = manifest(10, 5)
    assert Manifest.from_json(json.loads(json.dumps(plan.to_json())), "here") == plan
    assert plan.to_json()["shards"]["table"][0] == ["scores/part-00000.parquet", 0, 10]


def test_how_an_audit_runs_does_not_change_its_digest_and_what_it_measures_does():
    digest = manifest().config_digest
    running: dict[str, Any] = {"workers": 7, "gpus_per_worker": 0.5, "ray_address": "a:1", "max_failed": 0.5}
    assert running.keys() | {"output"} == EXECUTION
    assert manifest(**running).config_digest == digest
    for settings in ({"seed": 1}, {"batch_size": 8}, {"measure": {"num_probes": 5}}, {"shard_size": 3}, {"split": "x"}):
        assert manifest(**settings).config_digest != digest


def test_freezing_writes_once_and_then_compares(tmp_path):
    store = Store(str(tmp_path / "out"))
    first = freeze(store, manifest())
    before = store.read("manifest.json")
    assert freeze(store, replace(manifest(workers=9), created="later")) == first
    assert store.read("manifest.json") == before


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (manifest(seed=3), r"seed was 0 there and is 3 now"),
        (manifest(measure={"preset": "paper"}), r"measure was .*standard.* there and is .*paper"),
        (manifest(11, fingerprint="g"), r"the data set changed \(it had 10 rows in 1 files there and has 11"),
        (
            replace(manifest(), versions={**manifest().versions, "torch": "9"}),
            r"begun with torch .* and would go on with 9",
        ),
        (replace(manifest(), model=replace(MODEL, hash="sha256:ffff")), r"weights changed \(sha256:0123456789ab there"),
    ],
)
def test_another_audit_is_refused_by_name_and_nothing_is_overwritten(tmp_path, other, message):
    store = Store(str(tmp_path))
    freeze(store, manifest())
    before = store.read("manifest.json")
    with pytest.raises(OutputError, match=message):
        freeze(store, other)
    assert store.read("manifest.json") == before
    assert store.names() == ["manifest.json"]


def test_a_finished_audit_may_be_looked_at_by_later_versions(tmp_path):
    store = Store(str(tmp_path))
    first = freeze(store, manifest())
    store.write("_SUCCESS", b"")
    assert freeze(store, replace(manifest(), versions={**manifest().versions, "torch": "9"})) == first


def test_a_manifest_that_was_cut_off_is_no_obstacle(tmp_path):
    (tmp_path / ".manifest.json.1234.part").write_text("{")
    freeze(Store(str(tmp_path)), manifest())


def test_a_folder_with_other_things_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(OutputError, match=r"is not empty and holds no audit \(it has thesis.tex\)"):
        freeze(Store(str(tmp_path)), manifest())


def test_manifests_of_other_versions_are_refused(tmp_path):
    store = Store(str(tmp_path))
    store.write_json("manifest.json", {**manifest().to_json(), "schema_version": 99})
    with pytest.raises(OutputError, match="schema 99, this one writes 1"):
        freeze(store, manifest())
