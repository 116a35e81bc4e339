"""`volgrowth verify` through the command line, and on the demo, where the truth is known."""

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import volgrowth as vg
from tests.conftest import start_volgrowth, volgrowth
from volgrowth.audit.sampling.drawing import read_images
from volgrowth.demo.cases import write_parquet
from volgrowth.demo.setups import DIGITS
from volgrowth.demo.truth import find_reproduced

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def audited(tiny_model, digits, digit_file, tmp_path_factory):
    """An audit with a model that knows nothing."""
    folder = tmp_path_factory.mktemp("verified")
    write_parquet(folder / "held.parquet", digits[200:290], [f"held-{row}" for row in range(90)])
    settings = {"holdout": str(folder / "held.parquet"), "output": str(folder / "out"), "id_column": "name"}
    settings["engine"] = "local"
    vg.run_audit(vg.AuditConfig.build(model=str(tiny_model), data=str(digit_file), **settings), quiet=True)
    return folder / "out"


def drawn(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("verification/sample-*.parquet")}


def test_few_samples_say_so_and_later_ones_keep_them(audited):
    first = volgrowth("verify", audited, "--samples", 130)
    assert first.returncode == 0, first.stderr
    assert "130 samples drawn from the model reproduce 0 images of the data set" in first.stdout
    assert "130 samples are few" in first.stderr
    assert "2,371 samples see it with 95%" in first.stderr
    before = drawn(audited)
    assert sorted(before) == ["sample-00000.parquet", "sample-00001.parquet"]
    page = (audited / "report.html").read_text()
    assert "130 samples drawn from the model" in page
    assert volgrowth("verify", audited, "--samples", 140).returncode == 0
    after = drawn(audited)
    assert after["sample-00000.parquet"] == before["sample-00000.parquet"]
    assert after["sample-00001.parquet"] > before["sample-00001.parquet"]
    found = vg.open_audit(str(audited))
    assert found.summary["verification"]["samples"] == 140
    assert set(found.findings["verified_hits"].to_pylist()) == {0}
    assert pq.read_table(audited / "verification/samples.parquet").num_rows == 140


def test_what_is_interrupted_goes_on(audited, tmp_path):
    for path in audited.glob("verification/*"):
        path.unlink()
    process = start_volgrowth(["verify", audited, "--samples", 2000], tmp_path)
    deadline = time.monotonic() + 200
    while not drawn(audited):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    before = drawn(audited)
    assert volgrowth("verify", audited, "--samples", 256).returncode == 0
    assert before.items() >= {name: t for name, t in drawn(audited).items() if name in before}.items()


def test_what_cannot_be_verified(audited, tmp_path):
    nothing = volgrowth("verify", tmp_path / "nothing", "--samples", 100)
    assert (nothing.returncode, "holds no audit" in nothing.stderr) == (2, True)
    none = volgrowth("verify", audited, "--samples", 0)
    assert (none.returncode, "--samples 0: expected at least 1; 2,371 say something" in none.stderr) == (2, True)


@pytest.mark.timeout(1200)
class TestDemo:
    def test_hits_are_those_of_the_whole_matrix_of_distances(self, demo):
        audit = vg.open_audit(str(demo / "audit"))
        case = DIGITS.case(demo, seed=1)
        names = sorted(path.name for path in (demo / "audit/verification").glob("sample-*.parquet"))
        samples = np.concatenate([read_images(audit.store, f"verification/{name}", (1, 8, 8)) for name in names])
        assert len(samples) == audit.summary["verification"]["samples"]
        # the demo's plain images hold a few pairs of equal ones, which the audit knows as identical
        identical = audit.findings["identical"].to_numpy()
        family = np.unique(identical, return_inverse=True)[1]
        truth = find_reproduced(samples, case.train, np.unique(case.holdout, axis=0), family)
        assert audit.findings["verified_hits"].to_numpy().tolist() == truth.hits[family].tolist()
        assert audit.summary["verification"]["min_hits"] == truth.min_hits

    def test_flags_keep_their_promise(self, demo):
        """Realised false-discovery rate at 20% <= .30 with power >= .6, over distinct images."""
        audit = vg.open_audit(str(demo / "audit"))
        findings = audit.findings
        first = findings["row"].to_numpy() == findings["identical"].to_numpy()
        truth = np.isin(findings["row"].to_numpy(), audit.summary["verification"]["rows"])[first]
        flags = findings["q_value"].to_numpy()[first] <= 0.2
        assert (flags & ~truth).sum() / flags.sum() <= 0.30
        assert (flags & truth).sum() / truth.sum() >= 0.6

    def test_flagged_images_return_from_noise_and_their_controls_do_not(self, demo):
        returns = vg.open_audit(str(demo / "audit")).summary["verification"]["returns"]
        level = returns["levels"].index(0.5)
        assert returns["flagged"][level] >= 0.6
        assert returns["controls"][level] <= 0.3
        assert returns["flagged"][-1] <= returns["flagged"][0]

    def test_the_interval_holds_the_precision(self, demo):
        found = vg.open_audit(str(demo / "audit")).summary["verification"]
        low, high = found["precision_interval"]
        assert low < found["flagged_reproduced"] / found["flagged"] < high or high == 1
        assert found["warnings"] == []


@pytest.mark.timeout(1200)
def test_a_sampler_that_stops_early_copies_less(demo, tmp_path):
    """The demo's model reproduces what was planted; stopped at level 2, mostly no longer."""
    output = tmp_path / "audit"
    shutil.copytree(demo / "audit", output)
    early = {}
    for level in (0.02, 2.0):
        found = vg.verify_audit(str(output), 256, stop_level=level, engine="local", quiet=True).summary["verification"]
        assert found["stopped"]["level"] == level
        early[level] = found["stopped"]["early"]
        usual = found["stopped"]["usual"]
    assert usual["copies"] > 50
    assert abs(early[0.02]["copies"] - usual["copies"]) < 0.1 * usual["copies"]
    assert early[2.0]["copies"] < 0.5 * usual["copies"]
    assert early[2.0]["distance"] > usual["distance"] * 0.5
    assert "stopped at noise level 2" in (output / "report.html").read_text()


def test_levels_to_stop_at(audited):
    zero = volgrowth("verify", audited, "--samples", 100, "--stop-level", 0)
    assert (zero.returncode, "--stop-level 0: expected a noise level above 0" in zero.stderr) == (2, True)
