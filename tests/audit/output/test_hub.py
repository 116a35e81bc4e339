"""Findings are sent to the hub: a stand-in for its HTTP interface on loopback, and its own client."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.curation.conftest import Run, _own_cache, run  # noqa: F401
from tests.support.samples import digits, write_folder
from volgrowth.audit.output.result import Audit, open_audit
from volgrowth.errors import OutputError


class _Hub(BaseHTTPRequestHandler):
    """Makes repositories and takes commits of small files, if the token is the right one."""

    made: dict[str, Any]
    files: dict[str, bytes]
    refuse_commits = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != "Bearer right":
            return self._answer(401, {"error": "Invalid credentials in Authorization header"})
        if self.path == "/api/repos/create":
            self.made.update(json.loads(body))
            return self._answer(200, {"url": f"http://{self.headers['Host']}/datasets/me/findings"})
        if "/preupload/" in self.path:
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if "/commit/" not in self.path:  # the card's header is checked
            return self._answer(200, {"errors": [], "warnings": []})
        if self.refuse_commits:
            return self._answer(403, {"error": "You don't have the rights to write"})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = {
            "commitUrl": f"http://{self.headers['Host']}/datasets/me/findings/commit/1",
            "commitOid": "1",
            "success": True,
        }
        self._answer(200, commit)

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Hub]]:
    handler = type("Hub", (_Hub,), {"made": {}, "files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("HF_TOKEN", "right")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def audit(run: Run, tmp_path: Path) -> Audit:  # noqa: F811
    write_folder(tmp_path / "data", digits(5))
    return open_audit(run(tmp_path / "data", tmp_path / "out").store.url)


def test_findings_summary_and_card_are_one_commit(hub, audit):
    assert audit.push_to_hub("me/findings").endswith("me/findings")
    assert (hub.made["name"], hub.made["type"]) == ("findings", "dataset")
    assert hub.made.get("private") is True or hub.made.get("visibility") == "private"
    assert sorted(hub.files) == ["README.md", "findings.parquet", "summary.json"]
    assert hub.files["findings.parquet"] == audit.store.read("findings.parquet")
    card = hub.files["README.md"].decode()
    assert card.startswith("---\nconfigs:\n- config_name: default\n  data_files: findings.parquet\n")
    assert "The images are not here." in card


def test_what_the_hub_refuses_is_a_sentence(hub, audit, monkeypatch):
    with pytest.raises(OutputError, match="names no repository of the hub"):
        audit.push_to_hub("a/b/c")
    hub.refuse_commits = True
    with pytest.raises(OutputError, match=r"cannot be sent to me/findings on the hub \(.*\): "):
        audit.push_to_hub("me/findings")
    assert hub.files == {}
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(OutputError, match=r"cannot be sent to me/findings on the hub \(.*\): .*HF_TOKEN"):
        audit.push_to_hub("me/findings")
