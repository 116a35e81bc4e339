import pyarrow as pa
import pytest

from tests.audit.output.test_manifest import manifest
from volgrowth.audit.output.fragments import publish_fragment, published, read_scores, reconcile
from volgrowth.audit.output.manifest import Manifest, Shard
from volgrowth.errors import DataError, OutputError
from volgrowth.records import SCORES
from volgrowth.storage.store import Store


def scores(shard: Shard) -> pa.Table:
    rows = [{"row": row, "status": "ok", "growth": 1.0} for row in range(shard.start, shard.stop)]
    return pa.Table.from_pylist(rows, schema=SCORES)


def put(store: Store, frozen: Manifest, shard: Shard) -> None:
    publish_fragment(store, frozen, shard, scores(shard), 1)


@pytest.fixture
def frozen():
    return manifest(25, shard_size=10)


@pytest.fixture
def store(tmp_path, frozen):
    """Where three fragments of an audit are."""
    store = Store(str(tmp_path))
    for shard in frozen.shards:
        put(store, frozen, shard)
    return store


def test_a_whole_audit_reconciles(store, frozen):
    reconcile(store, frozen)
    assert read_scores(store, frozen)["row"].to_pylist() == list(range(25))


def test_some_columns_are_read(store, frozen):
    some = read_scores(store, frozen, columns=("growth", "row"))
    assert some.equals(read_scores(store, frozen).select(["growth", "row"]))
    assert some.schema == pa.schema([SCORES.field("growth"), SCORES.field("row")])


def test_a_fragment_that_vanishes_before_it_is_read_is_missing(store, frozen):
    missing(store, frozen)
    with pytest.raises(OutputError, match=r"part-00001.parquet is missing .* run the audit again to score them"):
        read_scores(store, frozen)


def damaged(store: Store, frozen: Manifest) -> None:
    whole = store.read("scores/part-00001.parquet")
    store.write("scores/part-00001.parquet", whole[: len(whole) // 2])


def foreign(store: Store, frozen: Manifest) -> None:
    put(store, manifest(25, shard_size=10, seed=1), frozen.shards[1])


def other_weights_or_rows(store: Store, frozen: Manifest) -> None:
    put(store, manifest(25, shard_size=10, size=101), frozen.shards[1])


def missing(store: Store, frozen: Manifest) -> None:
    store.delete("scores/part-00001.parquet")


@pytest.mark.parametrize("harm", [damaged, foreign, other_weights_or_rows, missing])
def test_a_fragment_that_is_not_whole_or_not_of_this_audit_is_scored_again(store, frozen, harm):
    harm(store, frozen)
    assert set(published(store, frozen)) == {"scores/part-00000.parquet", "scores/part-00002.parquet"}
    with pytest.raises(OutputError, match=r"part-00001.parquet is missing or not whole: expected 10 rows"):
        reconcile(store, frozen)
    put(store, frozen, frozen.shards[1])
    reconcile(store, frozen)


def test_rows_that_a_source_did_not_give_are_not_published(store, frozen):
    with pytest.raises(DataError, match=r"got 9 rows: expected rows 10 to 19"):
        publish_fragment(store, frozen, frozen.shards[1], scores(frozen.shards[1]).slice(1), 1)


def test_columns_that_were_added_later_are_null_in_older_audits(store, frozen):
    shard = frozen.shards[1]
    _, footer = store.read_footer(shard.name)
    store.write_table(shard.name, scores(shard).drop_columns(["lid", "marks"]), footer)
    table = read_scores(store, frozen)
    assert table.schema.names == SCORES.names
    assert table["lid"].null_count == 25
    assert table["growth"].null_count == 0


def unparsable(store: Store, frozen: Manifest) -> None:
    whole = bytearray(store.read("scores/part-00001.parquet"))
    length = int.from_bytes(whole[-8:-4], "little")
    whole[-8 - length : -8] = b"\xff" * length
    store.write("scores/part-00001.parquet", bytes(whole))


def deleted_after_the_listing(store: Store, frozen: Manifest) -> None:
    names = store.names("scores")
    store.delete("scores/part-00001.parquet")
    store.names = lambda folder="": names  # type: ignore[method-assign]


@pytest.mark.parametrize("harm", [unparsable, deleted_after_the_listing])
def test_a_footer_that_says_nothing_is_no_fragment(store, frozen, harm):
    harm(store, frozen)
    assert set(published(store, frozen)) == {"scores/part-00000.parquet", "scores/part-00002.parquet"}


@pytest.mark.parametrize(
    "error",
    [
        PermissionError("Forbidden"),
        OSError("Forbidden: part-00000.parquet"),  # as gcsfs says it
        TimeoutError("no answer"),
        OSError(5, "Input/output error"),
        KeyError("x"),
    ],
)
def test_a_fragment_that_cannot_be_read_just_now_is_not_taken_for_a_missing_one(store, frozen, monkeypatch, error):
    def refuse(*arguments, **more):
        raise error

    monkeypatch.setattr(store.files, "open", refuse)
    with pytest.raises(OutputError, match=r"part-0000[0-2].parquet cannot be read"):
        published(store, frozen)
