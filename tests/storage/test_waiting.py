"""A server that takes a connection and never answers is named while it is waited for, and given up."""

import socket
from collections.abc import Iterator

import pytest

from volgrowth.errors import DataError
from volgrowth.sources import open_source
from volgrowth.storage import urls, waiting


@pytest.fixture
def silent() -> Iterator[str]:
    """The host and port of a server that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SLOW_SECONDS", 0.1)
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(waiting, "_said", {})
    monkeypatch.setattr(waiting, "_watch", None)
    monkeypatch.setattr(urls, "HTTP_SECONDS", 1.0)


def test_a_silent_http_server_is_named_and_given_up(silent, capsys):
    with pytest.raises(DataError, match=r"cannot be read \(.*[Tt]imeout.*check the endpoint"):
        open_source(f"http://{silent}/train.parquet")
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(", which")[0] for line in said] == [f"waiting for http://{silent}"]


def test_a_silent_s3_server_is_named(silent, capsys, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{silent}")
    with waiting.said_if_slow("s3://bucket/a.parquet"):
        waiting.time.sleep(0.5)
    assert f"waiting for http://{silent}, which" in capsys.readouterr().err


def test_what_answers_at_once_and_what_is_on_this_disk_is_not_said(capsys):
    with waiting.said_if_slow("http://localhost/quick"):
        pass
    with waiting.said_if_slow("/tmp"):
        waiting.time.sleep(0.4)
    assert capsys.readouterr().err == ""


def test_a_password_in_a_url_is_not_said():
    assert waiting.host_of("http://user:secret@example.org:8080/a") == "http://example.org:8080"
