import os
import subprocess
import sys

import numpy as np
import pytest

from jobs.benchmark.cost import engine_load
from jobs.benchmark.cost.engine_load import cost_model, loop_cpu, make_data, memory_slope, scale
from jobs.benchmark.processes import cpu_of_tree, in_repository, resident_mib
from jobs.experiments import publish_outcome
from jobs.pages import DOCS
from tests.support.measured_pages import headings
from volgrowth.sources import decode_image, open_source


def test_the_data_are_what_was_asked_for(tmp_path):
    make_data(tmp_path / "data", 130)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}
    make_data(tmp_path / "data", 130)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()} == before
    source = open_source(str(tmp_path / "data"))
    images = [decode_image(row.data or b"", (1, 8, 8), 64) for row in source.read(0, 130)]
    assert len({image.tobytes() for image in images}) == 130


def test_fewer_rows_than_a_batch_are_looped_over(tmp_path):
    assert loop_cpu(make_data(tmp_path / "data", 20), 20) > 0


def test_cpu_time_is_that_of_a_process_and_all_below_it():
    busy = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ninput()"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    process = subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdin
    process.stdout.readline()
    assert len(cpu_of_tree(process.pid)) == 2
    assert sum(cpu_of_tree(process.pid).values()) >= 0.3
    assert process.pid in cpu_of_tree(os.getpid())
    process.stdin.close()
    process.wait()
    assert resident_mib(process.pid) == 0
    assert 10 < resident_mib(os.getpid()) <= resident_mib(os.getpid(), peak=True)


def test_started_processes_find_the_experiments(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    show = "import jobs.benchmark, sys; print(sys.path)"
    shown = subprocess.run(
        [sys.executable, "-c", show], cwd=tmp_path, env=in_repository(), capture_output=True, text=True
    )
    assert str(tmp_path) in shown.stdout


def test_memory_that_grows_has_a_slope_with_its_interval():
    random, done = np.random.default_rng(0), np.linspace(0, 1e6, 500)
    slope, error = memory_slope(done, 300 + 2e-5 * done + random.normal(0, 3, 500))
    assert slope is not None
    assert error is not None
    assert 0 < error < 2
    assert abs(slope - 20) < 3 * error
    assert memory_slope(done[:2], done[:2]) == memory_slope(np.ones(9), np.arange(9)) == (None, None)


@pytest.mark.ray
@pytest.mark.slow
def test_audits_of_two_sizes_give_a_cost_model_and_one_is_a_soak(tmp_path, monkeypatch):
    outcome = scale(tmp_path, (400, 200), (1,))
    audits, [model] = outcome.tables["audits"], outcome.tables["model"]
    assert [each["rows"] for each in audits] == [200, 400]
    for each in audits:
        assert each["command, s"] > each["asked for again, s"] > 0
        assert min(each["analysis, MiB"], each["CPU, s"], each["images/s"]) > 0
        # both lie on the line
        on_line = model["start, s"] + each["rows"] * model["a row adds, ms"] / 1e3
        assert on_line == pytest.approx(each["command, s"])
    assert model["plain loop, ms"] > 0
    for each in audits:  # one shard: too few samples for a slope, and the driver's memory is that at its end
        assert each["grows, MiB a million rows"] is None
        first, last = (float(value.replace(",", "")) for value in each["driver, MiB"].split(" to "))
        assert first == last > 100
    # a soak measures the same of one size
    monkeypatch.setattr(engine_load, "measure_audit", lambda folder, rows, workers: audits[1])
    monkeypatch.setattr(engine_load, "loops_cpu", lambda data, rows, count: audits[1]["CPU, s"] / 400 / 2)
    soaked = engine_load.soak(tmp_path, 400)
    assert soaked.sentences[0].endswith("an overhead of +100%.")
    publish_outcome("performance", "scale", outcome, tmp_path, 1.0)
    publish_outcome("engine", "soak", soaked, tmp_path, 1.0)
    for page, places in (("performance", ("scale-audits", "scale-model")), ("engine", ("soak-table",))):
        written, committed = ((folder / f"{page}.md").read_text() for folder in (tmp_path, DOCS))
        for place in places:
            assert headings(written, place) == headings(committed, place)


def test_the_model_says_what_a_hundred_million_rows_would_take():
    few = {"rows": 1000, "workers": 1, "command, s": 15.5, "CPU, s": 30.0}
    many = {"rows": 11_000, "workers": 1, "command, s": 20.5, "CPU, s": 35.76}
    model = cost_model(few, many, loop_cpu=4.8e-4)
    assert model["start, s"] == pytest.approx(15)
    assert [model[name] for name in ("a row adds, ms", "CPU a row, ms", "overhead, %")] == pytest.approx(
        [0.5, 0.576, 20]
    )
    assert [model[name] for name in ("1 GPU, h", "8 GPUs, h", "64 GPUs, h")] == pytest.approx([1, 1 / 8, 1 / 64])
