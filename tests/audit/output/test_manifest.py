import json
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from volgrowth.audit.output.manifest import DataInfo, Manifest
from volgrowth.config import EXECUTION, AuditConfig
from volgrowth.records import ModelInfo
from volgrowth.sources import Listing, Opened, SourceFile

MODEL = ModelInfo("m", "UNet2DModel", (1, 8, 8), "sha256:0123456789ab", 10)


def listing(*rows: int, size: int = 100) -> Listing:
    """Of files with so many rows each."""
    return Listing.build("parquet", [SourceFile(f"{index}.parquet", size, count) for index, count in enumerate(rows)])


def manifest(rows: int = 10, holdout: int = 0, size: int = 100, **settings: Any) -> Manifest:
    config = AuditConfig.build(model="m", data="d", output="o", **settings)
    held = DataInfo.of("h", None, listing(holdout)) if holdout else None
    return Manifest.of(config, MODEL, DataInfo.of("d", None, listing(rows, size=size)), held)


@given(rows=st.integers(0, 500), holdout=st.integers(0, 500), size=st.integers(1, 200))
def test_shards_cover_every_row_once(rows, holdout, size):
    frozen = manifest(rows, holdout, shard_size=size)
    for folder, count in (("scores", rows), ("holdout", holdout)):
        covered = [row for s in frozen.shards if s.folder == folder for row in range(s.start, s.stop)]
        assert covered == list(range(count))
    assert len({shard.name for shard in frozen.shards}) == len(frozen.shards)
    assert all(0 < shard.rows <= size for shard in frozen.shards)


@given(st.lists(st.integers(0, 90), min_size=1, max_size=5), st.integers(1, 40))
def test_an_extension_adds_shards_and_leaves_those_there_as_they_are(gained, size):
    frozen = manifest(25, 7, shard_size=size)
    files = [25]
    for rows in gained:
        before = frozen
        files.append(rows)
        frozen = replace(frozen, data=frozen.data.extended(listing(*files)))
        audited = [shard for shard in frozen.shards if shard.folder == "scores"]
        assert [row for shard in audited for row in range(shard.start, shard.stop)] == list(range(sum(files)))
        kept = [(shard, before.digest_at(shard.generation)) for shard in before.shards]
        assert set(kept) <= {(shard, frozen.digest_at(shard.generation)) for shard in frozen.shards}


def test_fragments_are_named_as_the_design_says():
    assert manifest(8000, shard_size=1000).shards[7].name == "scores/part-00007.parquet"


def test_an_audit_frozen_with_other_settings_than_there_are_now_goes_on():
    """The first version froze `adaptive`, which nearly nobody used, and knew no limit of bytes."""
    frozen = manifest(10, 5)
    content = frozen.to_json()
    content["config"]["adaptive"] = False
    del content["config"]["max_bytes"]
    assert Manifest.from_json(content, "here").config == frozen.config
    content["config"]["adaptive"] = True
    assert Manifest.from_json(content, "here").config != frozen.config


def test_what_was_opened_is_noted_and_decides_nothing():
    """Manifests of the versions that did not note it go on as they are."""
    frozen = manifest(10, 5)
    noted = replace(frozen, data=replace(frozen.data, opened=Opened("tar file", 1, 10)))
    assert (noted.digest, noted.config_digest) == (frozen.digest, frozen.config_digest)
    content = json.loads(json.dumps(noted.to_json()))
    assert Manifest.from_json(content, "here") == noted
    assert content["data"].pop("opened")["kind"] == "tar file"
    assert Manifest.from_json(content, "here") == frozen


def test_a_manifest_survives_json():
    frozen = manifest(10, 5)
    assert Manifest.from_json(json.loads(json.dumps(frozen.to_json())), "here") == frozen
    assert frozen.to_json()["shards"]["table"][0] == ["scores/part-00000.parquet", 0, 10]


def test_an_older_audit_goes_on_with_sizes_of_png_files():
    content = manifest().to_json()
    assert Manifest.from_json(content, "here").png_method == content.pop("png_method") == 2
    assert Manifest.from_json(content, "here").png_method == 1


def test_how_an_audit_runs_does_not_change_its_digest_and_what_it_measures_does():
    digest = manifest().config_digest
    running: dict[str, Any] = {
        "engine": "local",
        "workers": 7,
        "min_workers": 2,
        "wait_minutes": 1.0,
        "hang_minutes": 1.0,
        "gpus_per_worker": 0.5,
        "ray_address": "a:1",
        "max_failed": 0.5,
        "data_kind": "folder",
        "holdout_kind": "parquet",
        "log_json": "log",
        "trust_model": False,  # the tests trust models unless told
    }
    assert running.keys() | {"output"} == EXECUTION
    assert manifest(**running).config_digest == digest
    for settings in (
        {"seed": 1},
        {"batch_size": 8},
        {"measure": {"loss_level": 0.5}},
        {"shard_size": 3},
        {"split": "x"},
    ):
        assert manifest(**settings).config_digest != digest
