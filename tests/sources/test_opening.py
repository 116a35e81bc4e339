import pickle

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.samples import dataset, write_folder, write_parquet
from volgrowth.errors import DataError
from volgrowth.sources import Listing, SourceFile, content_id, open_source
from volgrowth.sources.base import Request
from volgrowth.sources.readers.hub import HubSource


@pytest.fixture(scope="module")
def root(tmp_path_factory, images):
    """The same images four times: saved, as a parquet file, as a folder of parquet files, as image files."""
    root = tmp_path_factory.mktemp("kinds")
    dataset(images).save_to_disk(str(root / "saved"), num_shards=3)
    write_parquet(root / "one.parquet", images)
    for part in range(3):
        write_parquet(root / "parts" / f"train-{part:05}.parquet", images[part * 19 : (part + 1) * 19])
    write_folder(root / "folder", images)
    return root


KINDS = {"saved": "arrow", "one.parquet": "parquet", "parts": "parquet", "folder": "folder"}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_a_path_decides_by_what_it_holds(root, name, kind):
    assert open_source(str(root / name)).kind == kind


@pytest.mark.parametrize("name", [*KINDS, "parts/train-0000[0-2].parquet", "parts/*"])
def test_every_kind_gives_the_same_rows(root, name, images):
    rows = list(open_source(str(root / name)).read(0, len(images)))
    assert [row.data for row in rows] == images
    assert [row.image_id for row in rows] == [content_id(data) for data in images]
    assert [row.row for row in rows] == list(range(len(images)))
    assert len({row.source for row in rows}) == len(images)


@pytest.mark.parametrize("name", KINDS)
def test_a_pickled_source_is_small_and_reads_the_same(root, name):
    source = open_source(str(root / name))
    again = pickle.loads(pickle.dumps(source))
    assert again.fingerprint == source.fingerprint
    assert list(again.read(15, 25)) == list(source.read(15, 25))
    list(again.read(0, 1))
    assert len(pickle.dumps(again)) < 5000


@pytest.mark.parametrize("name", [*KINDS, "parts/train-0000[0-2].parquet"])
def test_a_listing_is_enough_to_read_again(root, name, monkeypatch):
    source = open_source(str(root / name))
    chunks = list(source.listing.chunks())
    monkeypatch.setattr("volgrowth.storage.places.walk_folder", None)
    again = open_source(str(root / name), listing=Listing.stored(source.listing.describe(), chunks.__getitem__))
    assert list(again.read(15, 25)) == list(source.read(15, 25))
    assert (again.fingerprint, again.num_files) == (source.fingerprint, source.num_files)


def test_a_listing_of_the_hub_is_checked(root, images):
    data = str(root / "parts")
    listing = HubSource(Request(data)).listing
    assert next(open_source(data, listing=listing).read(3, 4)).data == images[3]
    for kind, name in (("hub", data), ("arrow", str(root / "saved"))):
        with pytest.raises(DataError, match=r"is not what it was .* \(it has 57 rows, then 3\)"):
            open_source(name, listing=Listing.build(kind, [SourceFile("train", 0, 3)]))


def test_a_listing_of_what_is_not_there_is_an_error(root):
    listing = open_source(str(root / "folder")).listing
    with pytest.raises(DataError, match="gone does not exist"):
        open_source("gone", listing=listing)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("span", [(-1, 3), (3, 2), (0, 58), (58, 58)])
def test_rows_out_of_range_are_refused_at_once(root, name, span):
    with pytest.raises(ValueError, match="57"):
        open_source(str(root / name)).read(*span)


@pytest.mark.parametrize("name", KINDS)
def test_moving_a_data_set_leaves_its_fingerprint(root, name, tmp_path):
    before = open_source(str(root / name)).fingerprint
    moved = (root / name).rename(tmp_path / name)
    try:
        assert open_source(str(moved)).fingerprint == before
    finally:
        moved.rename(root / name)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "no data set was given"),
        ("/no/such/place", "/no/such/place does not exist"),
        ("./nothing", "./nothing does not exist"),
        ("nothing.parquet", "nothing.parquet does not exist"),
        ("a/b/c", "a/b/c does not exist"),
        ("nothing/*.parquet", "matches no file"),
        ("nothing/{00..03}.tar", "does not exist"),
        ("file:///no/such/place", "file:///no/such/place does not exist"),
        ("s3://", "names no bucket"),
        ("nonsense://bucket/data", "cannot be opened: .*nonsense"),
    ],
)
def test_what_is_not_there_is_said(data, message):
    with pytest.raises(DataError, match=message.replace("/*", r"/\*").replace("{", r"\{")):
        open_source(data)


def test_offline_says_that_it_is_neither_here_nor_on_the_hub(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'org/name' on the Hub (OfflineModeIsEnabled)\nmore")

    def ask_again(*args, **kwargs):
        pytest.fail("a hub that does not answer is waited for once")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    monkeypatch.setattr(datasets, "get_dataset_config_names", ask_again)
    with pytest.raises(DataError, match=r"org/name is neither a path here .* nor .* hub: Couldn't reach") as caught:
        open_source("org/name")
    assert "\n" not in str(caught.value)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="is a file, and neither parquet nor tar"):
        open_source(str(tmp_path / "images.zip"))
    with pytest.raises(DataError, match=r"\* holds no images: it holds 1 \.zip file; expected parquet files"):
        open_source(str(tmp_path / "*"))


def test_columns_have_no_meaning_in_a_folder_of_images(root):
    with pytest.raises(DataError, match="id_column 'name' has no meaning"):
        open_source(str(root / "folder"), id_column="name")


def test_the_hub_loader_gives_the_same_rows_and_survives_pickling(root, images):
    source = HubSource(Request(str(root / "parts")))
    assert [row.data for row in source.read(0, 57)] == images
    again = pickle.loads(pickle.dumps(source))
    assert list(again.read(20, 30)) == list(source.read(20, 30))
    assert [row.source for row in again.read(7, 9)] == ["train#7", "train#8"]


def test_the_hub_loader_reads_images_by_their_paths(root, images):
    assert [row.data for row in HubSource(Request(str(root / "folder"))).read(0, 57)] == images


def test_the_hub_loader_names_its_splits(tmp_path, images):
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", images[:3])
    with pytest.raises(DataError, match=r"several splits \(.*train.*\)"):
        HubSource(Request(str(tmp_path)))
    with pytest.raises(DataError, match=r"Unknown split.*train"):
        HubSource(Request(str(tmp_path), "other"))
    assert HubSource(Request(str(tmp_path), "test")).num_rows == 3


def test_an_expanded_home_is_found(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root))
    assert open_source("~/one.parquet").num_rows == 57


def test_a_binary_column_is_an_image_column(tmp_path, images):
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view()):
        pq.write_table(pa.table({"picture": pa.array(images, type=kind)}), tmp_path / "b.parquet")
        assert [row.data for row in open_source(str(tmp_path / "b.parquet")).read(0, 57)] == images


@pytest.mark.parametrize("pattern", ["parts/{train-00000,../one}.parquet", "par*/../on*.parquet"])
def test_a_pattern_names_nothing_outside_of_its_folder(root, pattern):
    """A listing holds no names that lead out of its data set."""
    with pytest.raises(DataError, match=r"leads out of .* by \.\.: begin the pattern with the folder"):
        open_source(f"{root}/{pattern}")
    assert open_source(f"{root}/folder/../{{parts/train-00000,one}}.parquet").num_files == 2
