import json
import os
import subprocess
import sys

import numpy as np
import pytest

from jobs.benchmark.cost.soak import _cpu_of_tree, _resident, make_data, run_soak, write
from volgrowth.sources import decode_image, open_source


def test_the_data_are_what_was_asked_for(tmp_path):
    make_data(tmp_path / "data", 130)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}
    make_data(tmp_path / "data", 130)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()} == before
    source = open_source(str(tmp_path / "data"))
    images = [decode_image(row.data or b"", (1, 8, 8), 64) for row in source.read(0, 130)]
    assert len({image.tobytes() for image in images}) == 130


def test_cpu_time_is_that_of_a_process_and_all_below_it():
    busy = "import time\nwhile time.process_time() < 1: pass\nprint('done', flush=True)\ninput()"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    process = subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdin
    process.stdout.readline()
    assert len(_cpu_of_tree(process.pid)) == 2
    assert sum(_cpu_of_tree(process.pid).values()) >= 1
    assert process.pid in _cpu_of_tree(os.getpid())
    process.stdin.close()
    process.wait()
    assert _resident(process.pid) == 0
    assert _resident(os.getpid()) > 10


@pytest.mark.ray
@pytest.mark.slow
def test_a_small_soak_measures_everything(tmp_path):
    measured = run_soak(tmp_path, 12_000)
    write(tmp_path, measured, "this machine")
    assert (measured.rows, json.loads((tmp_path / "soak.json").read_text())["rows"]) == (12_000, 12_000)
    assert np.isfinite([measured.slope, measured.overhead, measured.images_per_second]).all()
    assert "| Overhead |" in (tmp_path / "soak.md").read_text()
