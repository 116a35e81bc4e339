"""An audit of a data set behind a signed URL works, and nothing that it leaves shows the signature."""

import functools
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.curation.test_lists import write_parquet
from tests.support.samples import digits as digit_files
from volgrowth.audit.output.result import open_audit
from volgrowth.commands.audit import run_audit
from volgrowth.config import AuditConfig
from volgrowth.errors import DataError
from volgrowth.sources import open_source

SIGNATURE = "5f1e7c0ffee5"
PASSWORD = "hunter2hunter2"


class Signed(http.server.BaseHTTPRequestHandler):
    """Serves ranges of one file to who has the signature, or the user's name and password in base64."""

    def __init__(self, data: bytes, *arguments: object) -> None:
        self.data = data
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        known = f"Signature={SIGNATURE}" in self.path or "Authorization" in self.headers
        if not known or not self.path.startswith("/train.parquet"):
            return self.send_error(403)
        asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, stop = (int(asked[1]), int(asked[2]) + 1) if asked else (0, len(self.data))
        part = self.data[start:stop]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(self.data)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address, HOST:PORT, of a server on loopback."""
    write_parquet(tmp_path / "train.parquet", digit_files(60))
    data = (tmp_path / "train.parquet").read_bytes()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Signed, data)) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{serving.server_port}"
        serving.shutdown()


def left_behind(folder: Path) -> str:
    """All that the files below a folder hold, as text."""
    texts = []
    for file in folder.rglob("*"):
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            texts.append(f"{table.schema.metadata} {table.to_pylist()}")
        elif file.is_file():
            texts.append(file.read_bytes().decode("utf-8", "replace"))
    return "\n".join(texts)


def test_no_file_and_no_line_of_an_audit_shows_a_signature(server, tiny_model, tmp_path, capfd):
    url = f"http://{server}/train.parquet?X-Amz-Date=1&X-Amz-Signature={SIGNATURE}"
    out = tmp_path / "out"
    settings = {"model": str(tiny_model), "output": str(out), "engine": "local", "log_json": str(tmp_path / "log")}
    audit = run_audit(AuditConfig.build(data=url, **settings))
    assert audit.summary["counts"]["ok"] == 60
    assert audit.scores["source"].to_pylist()[0] == "train.parquet#0"
    assert audit.manifest["data"]["name"] == f"http://{server}/train.parquet"
    assert "the report shows no pictures" not in capfd.readouterr().err
    later = f"http://{server}/train.parquet?X-Amz-Date=2&X-Amz-Signature={SIGNATURE}&again=1"
    assert run_audit(AuditConfig.build(data=later, **settings)).manifest == audit.manifest, "the same audit"
    assert SIGNATURE not in left_behind(tmp_path / "out") + (tmp_path / "log").read_text()
    assert SIGNATURE not in "".join(capfd.readouterr()) + repr(open_audit(str(out)))


def test_a_password_is_given_to_the_server_and_shown_nowhere(server):
    source = open_source(f"http://user:{PASSWORD}@{server}/train.parquet")
    assert source.listing.num_rows == 60
    assert [row.source for row in source.read(0, 1)] == ["train.parquet#0"]
    with pytest.raises(DataError) as refused:
        open_source(f"http://user:{PASSWORD}@{server}/other.parquet?sig={SIGNATURE}")
    assert PASSWORD not in str(refused.value)
    assert SIGNATURE not in str(refused.value)
