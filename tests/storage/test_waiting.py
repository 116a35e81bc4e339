"""A server that takes a connection and never answers is named while it is waited for, and given up."""

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.support.s3 import environment
from volgrowth.errors import DataError, OutputError
from volgrowth.sources import open_source
from volgrowth.storage import urls, waiting
from volgrowth.storage.store import Store


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


@pytest.mark.parametrize("ask", [("read", "a"), ("read_footer", "a"), ("names",)])
def test_a_silent_s3_server_is_given_up_after_three_attempts(ask, monkeypatch):
    monkeypatch.setattr("s3fs.S3FileSystem.read_timeout", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        for name, value in environment("http://{}:{}".format(*server.getsockname())).items():
            monkeypatch.setenv(name, value)
        store = Store("s3://bucket/out")
        with pytest.raises(OutputError, match=r"[Tt]imeout.*check the endpoint"):
            getattr(store, ask[0])(*ask[1:])
        assert count_connections(server) == 3


@pytest.mark.parametrize("size", [0, 1 << 23])  # the second is more than a socket buffers
def test_a_silent_s3_server_that_takes_no_upload_is_given_up(size, monkeypatch):
    monkeypatch.setattr("volgrowth.storage.uploads.UPLOAD_SECONDS", 0.5)
    monkeypatch.setattr("volgrowth.storage.uploads.SLOWEST_UPLOAD", 1e9)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        for name, value in environment("http://{}:{}".format(*server.getsockname())).items():
            monkeypatch.setenv(name, value)
        store = Store("s3://bucket/out")
        with pytest.raises(OutputError, match=r"cannot be written \(\d+ bytes were not taken in .*check the endpoint"):
            store.write("a", bytes(size))


def count_connections(server: socket.socket) -> int:
    """Return how many clients have connected."""
    server.setblocking(False)
    count = 0
    with suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
            count += 1
    return count


def test_what_answers_at_once_and_what_is_on_this_disk_is_not_said(capsys):
    with waiting.said_if_slow("http://localhost/quick"):
        pass
    with waiting.said_if_slow("/tmp"):
        waiting.time.sleep(0.4)
    assert capsys.readouterr().err == ""


def test_a_password_in_a_url_is_not_said():
    assert waiting.host_of("http://user:secret@example.org:8080/a") == "http://example.org:8080"
