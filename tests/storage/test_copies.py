import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.s3 import Bucket, Proxy

COPY = """
import sys
from volgrowth.storage.copies import Remote, copy_here, list_folder
from volgrowth.storage.urls import filesystem

def wanted():
    return {entry["name"].rpartition("/")[2]: Remote.of(entry) for entry in list_folder(files, root)}

files, root = filesystem(sys.argv[1])
listed = wanted()
print("ready", flush=True)
print(copy_here(files, sys.argv[1], listed, wanted, "models"))
"""


def test_two_processes_at_once_share_one_copy(
    bucket: Bucket, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    contents = {"a": b"a" * 1000, "b": b"b"}
    for name, content in contents.items():
        bucket.put(f"model/{name}", content)
    proxy.fail("slow", method="GET", path="model/a", seconds=60)
    command = [sys.executable, "-c", COPY, f"{bucket.url}/model"]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) for _ in range(2)
    ]
    for process in running:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    proxy.heal()
    (copy,) = {process.communicate()[0].strip() for process in running}
    assert {path.name: path.read_bytes() for path in Path(copy).iterdir()} == contents
    assert [path for path in (tmp_path / "volgrowth" / "models").iterdir() if path.is_dir()] == [Path(copy)]
    assert sum(request.startswith("GET") and request.endswith("model/a") for request in proxy.requests) == 1
