"""Configurations of data sets of the hub, in folders as the hub has them."""

import pytest

from tests.support.samples import again, digits, write_parquet
from volgrowth.errors import DataError
from volgrowth.sources import open_source
from volgrowth.sources.base import Request
from volgrowth.sources.readers.hub import HubSource

IMAGES = digits(9)
SIZES = {"small": 3, "large": 9}


@pytest.fixture
def repository(tmp_path):
    """A repository with two configurations, of two splits each; `write(default)` names one of them as its default."""

    def write(default: str | None = None) -> str:
        lines = ["---", "configs:"]
        for name, size in SIZES.items():
            lines += [f"- config_name: {name}", "  data_files:"]
            for split, images in (("train", IMAGES[:size]), ("test", IMAGES[:2])):
                write_parquet(tmp_path / f"repo/{name}/{split}.parquet", images)
                lines += [f"  - split: {split}", f"    path: {name}/{split}.parquet"]
            lines += ["  default: true"] if name == default else []
        (tmp_path / "repo/README.md").write_text("\n".join([*lines, "---", ""]))
        return str(tmp_path / "repo")

    return write


def test_several_configurations_need_a_name(repository):
    data = repository()
    with pytest.raises(DataError) as caught:
        HubSource(Request(data, "train"))
    assert str(caught.value) == (
        f"{data} has several configurations (small, large): name the one to audit with data_config (--set "
        "data_config=NAME; of held-out images holdout_config)"
    )
    with pytest.raises(DataError, match=r"has no configuration 'nope'; it has: small, large\. Pass one as data_config"):
        open_source(data, "train", configuration="nope")
    for name, size in SIZES.items():
        source = open_source(data, "train", configuration=name)
        assert source.kind == "hub"
        assert [row.data for row in source.read(0, size)] == IMAGES[:size]
        assert source.left_aside == ()
        assert list(again(source, data, split="train", configuration=name).read(0, 2)) == list(source.read(0, 2))
    with pytest.raises(DataError, match=r"is not what it was .* \(it has 3 rows, then 9\)"):
        again(source, data, split="train", configuration="small")
    with pytest.raises(DataError, match=r"several splits \(train, test\)"):
        open_source(data, configuration="small")


def test_a_default_configuration_is_taken_and_the_others_are_said(repository):
    data = repository("large")
    source = HubSource(Request(data, "train"))
    assert source.num_rows == 9
    (aside,) = source.left_aside
    assert str(aside) == (
        "1 configuration ('large' is the one that the data set names as its default; data_config takes another, such "
        "as small)"
    )
    assert open_source(data, "train", configuration="small").num_rows == 3
    with pytest.raises(DataError, match=r"Unknown split"):
        HubSource(Request(data, "nope"))


def test_a_single_configuration_needs_no_name(tmp_path):
    write_parquet(tmp_path / "train.parquet", IMAGES)
    source = HubSource(Request(str(tmp_path)))
    assert (source.num_rows, source.left_aside) == (9, ())
    with pytest.raises(DataError, match=r"has no configuration 'other'; it has: default"):
        open_source(str(tmp_path), configuration="other")
