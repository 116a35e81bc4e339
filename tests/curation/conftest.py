"""Finished audits of the same images in every kind of data set."""

import os
import zlib
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.samples import dataset, digits, pairs, values, write_tar
from tests.support.tables import failed, many, scores
from volgrowth.analysis.findings import analyse
from volgrowth.audit.output.fragments import publish_fragment
from volgrowth.audit.output.freezing import FrozenAudit, freeze
from volgrowth.audit.output.manifest import SCORES_FOLDER, SUCCESS, DataInfo, Manifest
from volgrowth.audit.output.result import FINDINGS_FILE, SUMMARY_FILE, Audit, open_audit
from volgrowth.commands.audit import run_audit
from volgrowth.config import AuditConfig
from volgrowth.records import ModelInfo
from volgrowth.sources import Row, open_source
from volgrowth.storage.store import Store

COPIED = [3] * 4 + [10] * 3
"""Rows of which more copies stand at the end."""
ROWS = 60 + len(COPIED)

SUMMARY = {"counts": {"rows": 0, "ok": 0}, "measure": {}, "duplicates": None, "run": {}, "versions": {}}
"""What every summary has, and nothing that these tests look at."""

Run = Callable[..., Audit]


@pytest.fixture(scope="session")
def images() -> list[bytes]:
    """60 digits, then copies of two of them."""
    distinct = digits(60)
    return distinct + [distinct[row] for row in COPIED]


@pytest.fixture(autouse=True, scope="session")
def _own_cache(datasets_cache):
    pass


@pytest.fixture(scope="session")
def run() -> Run:
    """A finished audit of a data set as it is read, with scores that no model gave: it takes no time."""

    def run(data: object, output: object, classes: Sequence[str | None] = (), **settings: Any) -> Audit:
        config = AuditConfig.build(model="none", data=str(data), output=str(output), shard_size=40, **settings)
        source = open_source(config.data, config.split, config.image_column, config.id_column)
        info = DataInfo.of(config.data, config.split, source.listing)
        manifest = Manifest.of(config, ModelInfo("none", "none", (1, 8, 8), "none", None), info, None)
        store = Store(config.output)
        freeze(store, FrozenAudit(manifest, {SCORES_FOLDER: source.listing}))
        measured = [scored(row, plain) for row, plain in zip(source.read(0, info.rows), many(info.rows), strict=True)]
        table = scores(*({**row, "class": name} for row, name in zip_longest(measured, classes)))
        for shard in manifest.shards:
            publish_fragment(store, manifest, shard, table.slice(shard.start, shard.rows), 1)
        store.write_table(FINDINGS_FILE, analyse(table).findings, {})
        store.write_json(SUMMARY_FILE, {**SUMMARY, "detection": None})
        store.write(SUCCESS, b"")
        return open_audit(config.output)

    return run


def scored(row: Row, plain: dict[str, Any]) -> dict[str, Any]:
    """What is measured of a row, when copies look and grow alike."""
    known = {"image_id": row.image_id, "source": row.source}
    if row.data is None:
        return failed("undecodable", error=row.error, **known)
    content = zlib.crc32(row.data)
    return {**plain, **known, "content_hash": content, "phash": content**2}


@pytest.fixture(scope="session")
def audited(tiny_model: Path, images: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """An audit as it really is, of a folder of Parquet files."""
    folder = tmp_path_factory.mktemp("audited")
    write_parquet_folder(folder / "data", images)
    config = AuditConfig.build(
        model=str(tiny_model), data=str(folder / "data"), output=str(folder / "out"), id_column="number", engine="local"
    )
    return run_audit(config, quiet=True)


def write_parquet_folder(folder: Path, images: list[bytes]) -> None:
    """Two files, one in a folder below, with row groups of 10 rows and columns of many types."""
    numbers = list(range(len(images)))
    table = pa.table(
        {
            "image": values(images),
            "number": numbers,
            "caption": [None if number % 7 == 0 else f"digit {number}" for number in numbers],
            "tags": [[str(number)] * (number % 3) for number in numbers],
            "split": pa.array(["a", "b"] * len(images)).dictionary_encode()[: len(images)],
        }
    )
    (folder / "more").mkdir(parents=True)
    pq.write_table(table[:35], folder / "a.parquet", row_group_size=10)
    pq.write_table(table[35:], folder / "more/b.parquet", row_group_size=10)


def write_odd_folder(folder: Path, images: list[bytes]) -> None:
    """Names with spaces, without UTF-8, and in folders."""
    for index, data in enumerate(images):
        name = f"{index:04}.png".encode()
        if index % 3 == 1:
            name = b"sub folder/" + name
        if index % 5 == 2:
            name = name.replace(b".png", b"-\xe9.png")
        path = os.fsencode(folder) + b"/" + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(data)


@pytest.fixture(scope="session")
def parquet(run: Run, images: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """Of a folder of Parquet files."""
    folder = tmp_path_factory.mktemp("parquet")
    write_parquet_folder(folder / "data", images)
    return run(folder / "data", folder / "out", id_column="number")


@pytest.fixture(scope="session")
def saved(run: Run, images: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """Of a data set written by `save_to_disk`, shuffled, in two shards."""
    folder = tmp_path_factory.mktemp("saved")
    captions = [f"digit {row}" for row in range(ROWS)]
    dataset(images, number=list(range(ROWS)), caption=captions).shuffle(seed=1).save_to_disk(
        str(folder / "data"), num_shards=2
    )
    return run(folder / "data", folder / "out", id_column="number")


@pytest.fixture(scope="session")
def tars(run: Run, images: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """Of webdataset tars; the second has names that need more than one header."""
    folder = tmp_path_factory.mktemp("tars")
    write_tar(folder / "data/00000.tar", pairs(images[:30]))
    long = [("long/" * 40 + name, content) for name, content in pairs(images[30:60], 30)]
    write_tar(folder / "data/00001.tar", long, format_=1)
    write_tar(folder / "data/00002.tar", pairs(images[60:], 60), format_=2)
    return run(folder / "data", folder / "out", id_column="__key__")


@pytest.fixture(scope="session")
def folder(run: Run, images: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """Of a folder of image files."""
    folder = tmp_path_factory.mktemp("folder")
    write_odd_folder(folder / "data", images)
    return run(folder / "data", folder / "out")
