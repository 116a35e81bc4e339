import pytest

from volgrowth.sources.readers.splits import split_of


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("0.parquet", "train"),
        ("part-0001.parquet", "train"),
        ("train-00000.parquet", "train"),
        ("testimony.parquet", "train"),
        ("test.parquet", "test"),
        ("dev/0.parquet", "validation"),
        ("data/val-00000-of-00002.parquet", "validation"),
        ("train/part-00000-of-00002.parquet", "train"),
        ("art-00000-of-00002.parquet", "art"),
        ("split=test/part-0.parquet", "test"),
        ("Split=valid/train-0.parquet", "train"),
        ("label=test/part-0.parquet", "train"),
        ("test_hard-00000-of-00002.parquet", "test_hard"),
    ],
)
def test_names_tell_splits(name, split):
    assert split_of(name) == split
