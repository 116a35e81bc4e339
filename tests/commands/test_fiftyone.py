"""Tags, fields and the saved view in the real FiftyOne, whose data sets live in a MongoDB.

Its database is mongomock here, which computes queries in this process: MongoDB itself comes from no package registry.
FiftyOne asks for other versions of libraries that the other tests use, so that `make test` does not install it. In an
environment of its own: pip install fiftyone mongomock, then pytest tests/commands/test_fiftyone.py.
"""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import volgrowth as vg
from tests.audit.output.test_views import FLAGGED, ROWS, small_audit
from volgrowth.audit.output.result import Audit
from volgrowth.commands.export import FIELDS, PREFIX, TAGS, VIEW
from volgrowth.errors import UsageError


@pytest.fixture(scope="module")
def audit(tiny_model: Path, digits: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return small_audit(tmp_path_factory.mktemp("fiftyone"), tiny_model, digits)


@pytest.fixture(scope="module")
def fiftyone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """FiftyOne with its two clients of MongoDB replaced by those of one emulated server."""
    mongomock: Any = pytest.importorskip("mongomock")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIFTYONE_DO_NOT_TRACK", "1")
        patch.setenv("FIFTYONE_CONFIG_PATH", str(tmp_path_factory.mktemp("config") / "config.json"))
        patch.setenv("FIFTYONE_DATABASE_URI", "mongodb://127.0.0.1:9")
        found = pytest.importorskip("fiftyone", exc_type=ImportError)
        from fiftyone.core.odm import database

        server = mongomock.store.ServerStore()

        class Client(mongomock.MongoClient):
            _closed = False

            def __init__(self, *given: Any, **more: Any) -> None:
                super().__init__(*given, **{**more, "_store": server})

        connect = database.mongoengine.connect
        patch.setattr(database.pymongo, "MongoClient", Client)
        patch.setattr(
            database.mongoengine, "connect", lambda name, **more: connect(name, mongo_client_class=Client, **more)
        )
        patch.setattr(database, "_validate_db_version", lambda *given: None)
        yield found


def dataset(fiftyone: Any, names: list[str]) -> Any:
    found = fiftyone.Dataset(uuid.uuid4().hex)
    samples = [fiftyone.Sample(filepath=f"/images/{name}.png", name=name, tags=["mine", "memorized"]) for name in names]
    found.add_samples(samples, progress=False)
    return found


def test_samples_get_tags_fields_and_a_saved_view(audit, fiftyone):
    ours = dataset(fiftyone, [*(f"<b>{row}" for row in range(ROWS)), "stranger"])
    counts = vg.fiftyone_tags(audit, ours, id_field="name")
    tags = dict(zip(ours.values("name"), ours.values("tags"), strict=True))
    assert [name for name in tags if "memorized" in tags[name]] == [*(f"<b>{row}" for row in FLAGGED), "stranger"]
    assert counts == {tag: sum(tag in found for name, found in tags.items() if name != "stranger") for tag in TAGS}
    assert all("mine" in found for found in tags.values())
    view = ours.load_saved_view(VIEW)
    assert view.values("name") == [*(f"<b>{row}" for row in FLAGGED), "stranger"]
    growth = f"{PREFIX}excess_growth"
    assert ours.values(growth)[:ROWS] == audit.findings["excess_growth"].to_pylist()
    assert ours.values(growth)[ROWS] is None
    assert {f"{PREFIX}{name}" for name in FIELDS if name != "verified_hits"} <= set(ours.get_field_schema())
    assert f"{PREFIX}verified_hits" not in ours.get_field_schema()
    # a second call gives the same, and the view is made again
    assert vg.fiftyone_tags(audit, ours, id_field="name") == counts
    assert dict(zip(ours.values("name"), ours.values("tags"), strict=True)) == tags
    assert ours.list_saved_views() == [VIEW]


def test_samples_of_a_view_are_tagged_alone(audit, fiftyone):
    ours = dataset(fiftyone, [f"<b>{row}" for row in range(ROWS)])
    ours.untag_samples("memorized")
    some = ours.select(ours.values("id")[:10])
    counts = vg.fiftyone_tags(audit, some, id_field="name")
    assert counts["memorized"] == 1
    assert [place for place, tags in enumerate(ours.values("tags")) if "memorized" in tags] == FLAGGED[:1]
    assert ours.list_saved_views() == []
    with pytest.raises(UsageError, match="none of the 1 samples is a row"):
        vg.fiftyone_tags(audit, dataset(fiftyone, ["stranger"]), id_field="name")
