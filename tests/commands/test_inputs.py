"""What an audit is of is frozen: the configuration of a data set of the hub, and tables beside images."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.samples import digits, write_folder, write_parquet
from volgrowth.audit.output.freezing import freeze
from volgrowth.audit.output.listings import open_frozen_data
from volgrowth.audit.output.manifest import HOLDOUT_FOLDER, MANIFEST, Manifest
from volgrowth.commands.audit import inspect_inputs
from volgrowth.config import AuditConfig
from volgrowth.errors import DataError, OutputError
from volgrowth.storage.store import Store

IMAGES = digits(130)
SIZES = {"small": 55, "large": 60}


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> Callable[..., AuditConfig]:
    """Settings of an audit of a repository with two configurations."""
    lines = ["---", "configs:"]
    for name, size in SIZES.items():
        write_parquet(tmp_path / f"repo/{name}.parquet", IMAGES[:size])
        lines += [f"- config_name: {name}", "  data_files:", "  - split: train", f"    path: {name}.parquet"]
    (tmp_path / "repo/README.md").write_text("\n".join([*lines, "---", ""]))

    def config(**settings: object) -> AuditConfig:
        chosen = {"data": str(tmp_path / "repo"), "data_config": "small", **settings}
        return AuditConfig.build(model=str(tiny_model), output=str(tmp_path / "out"), **chosen)

    return config


@pytest.fixture(autouse=True, scope="session")
def _own_cache(datasets_cache):
    pass


def test_another_configuration_is_another_audit(config):
    store = Store(config().output)
    held = {"holdout": config().data, "holdout_config": "large"}
    manifest = freeze(store, inspect_inputs(config(**held)))
    assert (manifest.data.rows, manifest.holdout and manifest.holdout.rows) == (55, 60)
    assert store.read_json(MANIFEST)["config"]["data_config"] == "small"
    for folder, size in (("scores", 55), (HOLDOUT_FOLDER, 60)):
        source = open_frozen_data(store, manifest, folder)
        assert [row.data for row in source.read(0, size)] == IMAGES[:size]
    assert freeze(store, inspect_inputs(config(**held))) == manifest
    with pytest.raises(OutputError, match="data_config was 'small' there and is 'large' now"):
        freeze(store, inspect_inputs(config(data_config="large", holdout=held["holdout"], holdout_config="small")))


def test_a_configuration_is_not_held_out_from_itself(config):
    with pytest.raises(DataError, match="is the audited set itself"):
        inspect_inputs(config(data_config="large", holdout=config().data, holdout_config="large"))


def test_outputs_from_before_know_no_configurations_and_resume(config, tmp_path):
    write_folder(tmp_path / "images", IMAGES[:9])
    asked = config(data=str(tmp_path / "images"), data_config=None)
    store = Store(asked.output)
    freeze(store, inspect_inputs(asked))
    content = store.read_json(MANIFEST)
    for name in ("data_config", "holdout_config"):
        del content["config"][name]
    store.write_json(MANIFEST, content)
    manifest = freeze(store, inspect_inputs(asked))
    assert manifest.config_digest == content["config_digest"]
    assert [row.data for row in open_frozen_data(store, manifest).read(0, 9)] == IMAGES[:9]
    assert Manifest.from_json(json.loads(json.dumps(content)), "x").data == manifest.data
