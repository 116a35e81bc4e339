from dataclasses import replace
from typing import Any

import pytest

from tests.audit.output.test_manifest import MODEL, listing, manifest
from volgrowth.audit.output.freezing import FrozenAudit, freeze
from volgrowth.audit.output.listings import stored_listing
from volgrowth.audit.output.manifest import DataInfo, Manifest
from volgrowth.errors import OutputError
from volgrowth.storage.store import Store


def asked(made: Manifest | None = None, *rows: int, size: int = 100) -> FrozenAudit:
    """Of files with so many rows each, ten by default."""
    files = listing(*(rows or (10,)), size=size)
    return FrozenAudit(replace(made or manifest(), data=DataInfo.of("d", None, files)), {"scores": files})


def with_versions(**versions: str) -> FrozenAudit:
    return asked(replace(manifest(), versions={**manifest().versions, **versions}))


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "out"))


def test_freezing_writes_once_and_then_compares(store):
    first = freeze(store, asked())
    before = store.read("manifest.json")
    assert freeze(store, asked(replace(manifest(workers=9), created="later"))) == first
    assert store.read("manifest.json") == before


def test_the_listing_is_kept_and_read_back(store):
    frozen = freeze(store, asked(None, 3, 0, 4))
    stored = stored_listing(store, "scores", frozen.data)
    assert list(stored) == list(listing(3, 0, 4))
    assert [(file.name, row) for file, row in stored.entries(2, 4)] == [("0.parquet", 0), ("2.parquet", 3)]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (asked(manifest(seed=3)), r"seed was 0 there and is 3 now"),
        (asked(manifest(measure={"preset": "paper"})), r"measure was .*standard.* there and is .*paper"),
        (
            asked(None, 11),
            r"the data set changed \(it had 10 rows in 1 files there and has 11.*0.parquet held 10 rows",
        ),
        (asked(None, 10, size=101), r"the data set changed .*0.parquet held 10 rows in 100 bytes"),
        (with_versions(torch="9"), r"begun with torch .* and would go on with 9"),
        (
            asked(replace(manifest(), model=replace(MODEL, hash="sha256:ffff"))),
            r"weights changed \(sha256:0123456789ab",
        ),
    ],
)
@pytest.mark.parametrize("extend", [False, True])
def test_another_audit_is_refused_by_name_and_nothing_is_overwritten(store, other, message, extend):
    freeze(store, asked())
    before = store.read("manifest.json")
    with pytest.raises(OutputError, match=message):
        freeze(store, other, extend=extend)
    assert store.read("manifest.json") == before
    assert store.names() == ["listing", "manifest.json"]
    assert store.names("listing") == ["scores-0-00000.parquet"]


def test_files_that_were_gained_are_taken_in_only_when_asked(store):
    freeze(store, asked(None, 10, 5))
    store.write("_SUCCESS", b"")
    with pytest.raises(OutputError, match=r"had 2 and gained 2\. Repeat the command with --extend"):
        freeze(store, asked(None, 10, 5, 3, 4))
    assert store.exists("_SUCCESS")
    extended = freeze(store, asked(None, 10, 5, 3, 4), extend=True)
    assert (extended.data.rows, extended.data.files, len(extended.data.grown)) == (22, 4, 1)
    assert not store.exists("_SUCCESS")
    for extend in (False, True):  # whether asked again or resumed
        assert freeze(store, asked(None, 10, 5, 3, 4), extend=extend) == extended


def test_gained_files_come_after_all_others_whatever_their_names(store, monkeypatch):
    from volgrowth.sources import Listing, SourceFile

    def of(*names: str) -> FrozenAudit:
        files = Listing.build("parquet", [SourceFile(name, 100, 4) for name in names])
        return FrozenAudit(replace(manifest(), data=DataInfo.of("d", None, files)), {"scores": files})

    freeze(store, of("b", "d"))
    once = freeze(store, of("a", "b", "d"), extend=True)
    twice = freeze(store, of("a", "b", "c", "d"), extend=True)
    assert [file.name for file in stored_listing(store, "scores", once.data)] == ["b", "d", "a"]
    assert [file.name for file in stored_listing(store, "scores", twice.data)] == ["b", "d", "a", "c"]
    assert freeze(store, of("a", "b", "c", "d")) == twice
    with pytest.raises(OutputError, match="a data set may gain files and lose none"):
        freeze(store, of("a", "b", "c"), extend=True)


def test_a_finished_audit_may_be_looked_at_by_later_versions(store):
    first = freeze(store, asked())
    store.write("_SUCCESS", b"")
    assert freeze(store, with_versions(torch="9")) == first


@pytest.mark.parametrize("left", [".manifest.json.1234.part", ".driver.json"])
def test_what_another_driver_left_is_no_obstacle(store, left):
    store.write(left, b"{")
    freeze(store, asked())


def test_a_folder_with_other_things_in_it_is_refused(store):
    store.write("thesis.tex", b"")
    with pytest.raises(OutputError, match=r"is not empty and holds no audit \(it has thesis.tex\)"):
        freeze(store, asked())


def test_manifests_of_other_versions_are_refused(store):
    content: dict[str, Any] = {**manifest().to_json(), "schema_version": 99}
    store.write_json("manifest.json", content)
    with pytest.raises(OutputError, match="schema 99, this one writes 1"):
        freeze(store, asked())
