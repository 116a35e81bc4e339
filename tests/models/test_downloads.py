"""Models behind URLs: downloaded once a machine, whole or not at all, and then as a local folder."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.checkpoints import WEIGHTS, edit, flatten, problem, save_pipeline, unet
from tests.support.s3 import Bucket, Proxy
from volgrowth.models import inspect_model, load_model

CALLS: list[Callable[..., object]] = [load_model, inspect_model]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pipeline(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "volgrowth" / "models"


def downloaded(cache: Path) -> list[str]:
    """Files of all copies, by their names in the model."""
    return sorted(p.relative_to(cache).as_posix().partition("/")[2] for p in cache.rglob("*.*") if p.suffix != ".lock")


def gets(proxy: Proxy) -> list[str]:
    return [
        request.rpartition("/")[2] for request in proxy.requests if request.startswith("GET") and "?" not in request
    ]


def test_a_model_behind_a_url_is_the_one_in_the_folder(folder: Path, bucket: Bucket) -> None:
    url = bucket.upload(folder, "some where/model #1")
    there, here = inspect_model(url), inspect_model(str(folder))
    # only the files that are needed were read there
    assert there == replace(here, name=url, files=there.files)
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    level = torch.tensor(0.3)
    assert torch.equal(load_model(url).noise(x, level), load_model(str(folder)).noise(x, level))


def test_only_what_is_needed_is_downloaded_and_once(folder: Path, bucket: Bucket, proxy: Proxy, cache: Path) -> None:
    url = bucket.upload(folder, "model")
    weights = (folder / "unet" / WEIGHTS).read_bytes()
    for name in (f"checkpoint-500/unet/{WEIGHTS}", "unet/diffusion_pytorch_model.fp16.safetensors", "unet/x.bin"):
        bucket.put(f"model/{name}", weights)
    inspect_model(url)
    needed = ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json", f"unet/{WEIGHTS}"]
    assert sorted(gets(proxy)) == sorted(name.rpartition("/")[2] for name in needed)
    assert [name for name in downloaded(cache) if "." in name] == needed
    proxy.requests.clear()
    load_model(url)
    assert gets(proxy) == []


def test_subfolders_and_flat_folders(folder: Path, bucket: Bucket) -> None:
    bucket.upload(folder, "repository/ema")
    bucket.upload(flatten(folder, folder.parent / "flat"), "flat")
    expected = inspect_model(str(folder)).hash
    assert inspect_model(f"{bucket.url}/repository", subfolder="ema").hash == expected
    assert inspect_model(f"{bucket.url}/repository/ema", subfolder="unet").hash == expected
    assert inspect_model(f"{bucket.url}/flat/").hash == expected
    assert inspect_model(f"file://{folder}").hash == expected


def test_other_weights_at_the_url_are_seen(folder: Path, bucket: Bucket) -> None:
    url = bucket.upload(folder, "model")
    before = inspect_model(url).hash
    save_pipeline(folder, unet(seed=1))
    bucket.upload(folder, "model")
    assert inspect_model(url).hash == inspect_model(str(folder)).hash != before


@pytest.mark.parametrize("kind", ["torn", "lost", "broken", "busy"])
def test_a_download_that_breaks_off_goes_on_or_leaves_nothing(
    kind: str, folder: Path, bucket: Bucket, proxy: Proxy, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = bucket.upload(folder, "model")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    proxy.fail(kind, method="GET", path=WEIGHTS)
    assert f"model {url} cannot be downloaded (" in problem(inspect_model, url)
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []
    proxy.heal()
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    fault = proxy.fail(kind, method="GET", path=WEIGHTS, times=1)
    assert inspect_model(url).hash == inspect_model(str(folder)).hash
    assert fault.hits > 1


def test_a_model_that_is_replaced_while_it_is_downloaded(
    folder: Path, bucket: Bucket, proxy: Proxy, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from volgrowth.storage import copies

    url = bucket.upload(folder, "model")
    fetch = copies._fetch

    def fetch_and_replace(*arguments: object) -> None:
        fetch(*arguments)  # type: ignore[arg-type]
        bucket.put("model/model_index.json", b"{}")  # the first to be fetched

    monkeypatch.setattr(copies, "_fetch", fetch_and_replace)
    assert "changed while it was downloaded" in problem(inspect_model, url)
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []


@pytest.mark.parametrize("call", CALLS, ids=["load", "inspect"])
def test_what_is_not_there(folder: Path, bucket: Bucket, call: Callable[..., object]) -> None:
    url = bucket.upload(folder, "model")
    assert problem(call, "s3://no-such-bucket/m") == (
        "model s3://no-such-bucket/m cannot be downloaded (The specified bucket does not exist): create "
        "no-such-bucket, or correct the name"
    )
    for missing in (f"{bucket.url}/nothing", bucket.url):
        assert f"model {missing} does not exist or holds no JSON file: expected" in problem(call, missing)
    assert f"{url}/model_index.json is a file: expected" in problem(call, f"{url}/model_index.json")
    assert f"{url} has no subfolder 'ema' with a model: it holds scheduler, unet" in problem(call, url, subfolder="ema")
    assert "revision 'v1' was given for the folder s3://" in problem(call, url, revision="v1")
    assert "model file:///no/such/folder does not exist" in problem(call, "file:///no/such/folder")
    assert "cannot be downloaded (Protocol not known: nonsense" in problem(call, "nonsense://x/y")


def test_what_is_wrong_with_a_copy_is_said_of_its_url(folder: Path, bucket: Bucket) -> None:
    edit(folder / "unet" / "config.json", sample_size=None)
    url = bucket.upload(folder, "model")
    assert problem(inspect_model, url).startswith(f"{url}/unet/config.json has no sample_size: ")
    assert problem(inspect_model, url, subfolder="unet").startswith(f"{url}/unet/config.json has no sample_size: ")


@pytest.mark.parametrize("kind", ["denied", "expired"])
def test_without_the_right_to(kind: str, folder: Path, bucket: Bucket, proxy: Proxy) -> None:
    url = bucket.upload(folder, "model")
    proxy.fail(kind, method=".*")
    assert f"model {url} cannot be downloaded (" in (said := problem(load_model, url))
    assert "renew the credentials" in said
    assert "AWS_ACCESS_KEY_ID" in said


def test_a_cache_that_cannot_be_written(
    folder: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "set XDG_CACHE_HOME to one that you may write to" in problem(load_model, bucket.upload(folder, "model"))
