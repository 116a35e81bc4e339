"""A real S3 server on loopback, and a proxy in front of it that breaks requests on demand."""

import asyncio
import http.client
import logging
import re
import socket
import struct
import threading
import time
import types
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

REFUSALS = {
    "denied": (403, "AccessDenied", "Access Denied"),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "broken": (500, "InternalError", "We encountered an internal error. Please try again."),
    "busy": (503, "SlowDown", "Please reduce your request rate."),
}
HOP_BY_HOP = {"connection", "expect", "host", "keep-alive", "transfer-encoding"}


@contextmanager
def s3_server() -> Iterator[str]:
    """Start moto's server in a thread, and give its URL."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


def environment(endpoint: str) -> dict[str, str]:
    """Return the environment variables by which any S3 client finds the server, in Ray's processes too."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "NO_PROXY": "127.0.0.1",
    }


@cache
def _client(endpoint: str) -> Any:
    """Return a client of the server's own, one for all buckets: to make one takes longer than most tests."""
    import boto3

    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=endpoint, **keys)


class Bucket:
    """A fresh bucket, which is looked into past the code under test and past the proxy."""

    def __init__(self, endpoint: str):
        self.name = f"bucket-{uuid.uuid4().hex[:12]}"
        self.url = f"s3://{self.name}"
        self.environment = environment(endpoint)
        self.client = _client(endpoint)
        self.client.create_bucket(Bucket=self.name)

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=data)

    def upload(self, folder: Path, prefix: str) -> str:
        """Put a folder's files under a prefix, and return its URL."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"{self.url}/{prefix}"

    def objects(self) -> dict[str, bytes]:
        """Return the bytes of every object that a reader can see, by key."""
        listed = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return {o["Key"]: self.client.get_object(Bucket=self.name, Key=o["Key"])["Body"].read() for o in listed}

    def open_uploads(self) -> int:
        """Count the multipart uploads neither completed nor aborted, which are paid for and seen by nobody."""
        return len(self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", []))


@dataclass
class Fault:
    """A way to break the requests that match: `times` of them (None: all), after the first `after`.

    `method` and `path` are patterns, that of the path for the query too.
    """

    kind: str
    method: str = "PUT"
    path: str = ""
    after: int = 0
    times: int | None = None
    seconds: float = 0.0
    hits: int = 0

    def strikes(self, method: str, path: str) -> bool:
        if not (re.fullmatch(self.method, method) and re.search(self.path, path)):
            return False
        self.hits += 1
        return self.after < self.hits and (self.times is None or self.hits <= self.after + self.times)


@dataclass
class Proxy:
    """Passes requests on to the server, except those that a fault strikes.

    cut: the connection breaks half-way through the body; lost: the request is done and the answer never comes;
    torn: it comes by half; slow: the request waits until the fault is
    mended, for some seconds at most; denied, expired, broken, busy: S3's answers with these meanings.
    """

    target: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        self._lock, self.conditional = threading.Lock(), threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def fail(self, kind: str, **where: Any) -> Fault:
        """Break the requests that a Fault of these fields strikes, from now on."""
        self.faults.append(Fault(kind, **where))
        return self.faults[-1]

    def wait_for(self, fault: Fault) -> None:
        """Wait for as long as a fault says, or until it is mended."""
        end = time.monotonic() + fault.seconds
        while fault in self.faults and time.monotonic() < end:
            time.sleep(0.02)

    def heal(self) -> None:
        self.faults.clear()

    def forget(self) -> None:
        """Mend all faults and forget the requests, for the next test."""
        self.heal()
        with self._lock:
            self.requests.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append(f"{method} {path}")
            return next((fault for fault in list(self.faults) if fault.strikes(method, path)), None)


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        self.close_connection = True
        fault = self.proxy.fault(self.command, self.path)
        kind = fault.kind if fault else "none"
        size = int(self.headers.get("Content-Length") or 0)
        if kind == "cut":
            return self._cut(self.rfile.read(size // 2))
        body = self.rfile.read(size)
        if kind in REFUSALS:
            return self._refuse(*REFUSALS[kind])
        if fault and kind == "slow":
            self.proxy.wait_for(fault)
        answer, content = self._forward(body)
        if kind == "lost":
            return self._reset(self.connection)
        self._answer(answer, content[: len(content) // 2] if kind == "torn" else content)
        if kind == "torn":
            self._reset(self.connection)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815, the names that the base class calls

    def _connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self.proxy.target.removeprefix("http://"), timeout=60)
        connection.putrequest(self.command, self.path, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP_BY_HOP:
                connection.putheader(name, value)
        connection.endheaders()
        return connection

    def _forward(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        # S3 checks the condition and writes in one step, moto in two
        with self.proxy.conditional if "If-None-Match" in self.headers else threading.Lock():
            connection = self._connect()
            connection.send(body)
            answer = connection.getresponse()
            content = answer.read()
        connection.close()
        return answer, content

    def _answer(self, answer: http.client.HTTPResponse, content: bytes) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: int, code: str, message: str) -> None:
        content = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _cut(self, half: bytes) -> None:
        """Break both connections, so that the server too has seen half of what was announced."""
        connection = self._connect()
        connection.send(half)
        assert connection.sock is not None
        self._reset(connection.sock)
        self._reset(self.connection)

    def _reset(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    def finish(self) -> None:
        with suppress(OSError):  # a connection that was cut
            super().finish()


def _hurried() -> types.ModuleType:
    """Return asyncio with naps of a fiftieth: clients make as many attempts as ever, with less time between them."""
    hurried = types.ModuleType("asyncio")
    hurried.__dict__.update(asyncio.__dict__, sleep=lambda seconds: asyncio.sleep(seconds / 50))
    return hurried


def use(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Point this process, and those it starts, to a server. Between attempts this process waits little."""
    for client in ("s3fs.core", "aiobotocore.endpoint"):
        monkeypatch.setattr(f"{client}.asyncio", _hurried())
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_MAX_ATTEMPTS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment(endpoint).items():
        monkeypatch.setenv(name, value)
