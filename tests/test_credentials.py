"""Credentials in URLs are hidden, remembered for the store's client, and blotted out of what clients say."""

import pytest

from volgrowth import credentials
from volgrowth.credentials import credentials_of, hide, known_credentials, redacted, remember, with_query
from volgrowth.storage.urls import filesystem


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "_known", {})


SIGNED = "https://host/a/b.parquet?X-Amz-Algorithm=AWS4&X-Amz-Credential=AKIA%2F1&X-Amz-Signature=0123456789abcdef"


@pytest.mark.parametrize(
    ("given", "public"),
    [
        ("https://user:hunter2@host:8080/a.parquet", "https://host:8080/a.parquet"),
        ("https://ghp_token123@host/a.parquet", "https://host/a.parquet"),
        ("s3://AKIAKEY:se/cr+et==@bucket/a@b:c.png", "s3://bucket/a@b:c.png"),
        (SIGNED, "https://host/a/b.parquet"),
        ("az://container/a.parquet?sv=2024&sig=abcdef%3D", "az://container/a.parquet"),
        ("https://host/a.tar?access_token=abcdefgh", "https://host/a.tar"),
    ],
)
def test_secrets_leave_a_url(given, public):
    assert hide(given) == public
    assert hide(public) == public
    assert credentials_of(public) is not None


@pytest.mark.parametrize(
    "name",
    [
        "s3://bucket/a:b@c.png",
        "http://host:8080/a@b.png",
        "abfss://container@account.dfs.core.windows.net/a",
        "https://host/a.parquet?version=3&id=7",
        "org/name",
        "/data/user:pass@host?sig=1",
        "hf://datasets/org/name@main/a.parquet",
    ],
)
def test_what_only_looks_like_a_secret_stays(name):
    assert hide(name) == name
    assert redacted(f"{name} cannot be read") == f"{name} cannot be read"
    assert not known_credentials()


def test_the_client_gets_them_and_another_process_can():
    files, path = filesystem("s3://AKIAKEY:se/cr+et==@bucket/a.png")
    assert (files.key, files.secret, path) == ("AKIAKEY", "se/cr+et==", "bucket/a.png")
    assert filesystem("s3://bucket/b.png")[0].key == "AKIAKEY"
    assert filesystem("s3://other/b.png")[0].key is None
    files, path = filesystem(SIGNED)
    assert path == SIGNED == with_query("https://host/a/b.parquet")
    kept = known_credentials()
    credentials._known.clear()
    remember(kept)
    assert filesystem("https://host/a/b.parquet")[1] == SIGNED


def test_a_store_that_takes_none_in_its_url_says_what_to_do():
    with pytest.raises(ValueError, match=r"az:// takes no user name, key or signature in its URL: leave it out, and"):
        filesystem("az://container/a.parquet?sig=abcdef")


def test_what_a_client_quotes_is_blotted_out():
    hide("https://user:hunter2@host/a.parquet")
    hide(SIGNED)
    said = f"403, url={SIGNED!r}; tried https://bob:swordfish@elsewhere/x and hunter2"
    for secret in ("0123456789abcdef", "AKIA%2F1", "hunter2", "swordfish", "bob"):
        assert secret not in redacted(said)
    assert redacted("https://bob:swordfish@elsewhere/x") == "https://***@elsewhere/x"
