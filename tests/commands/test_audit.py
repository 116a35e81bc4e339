"""Audits beside a reference model, with every preset, and with held-out sets that do not fit."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import volgrowth as vg
from tests.support.checkpoints import save_pipeline, unet
from tests.support.samples import encode
from volgrowth.analysis.calibration.error_rates import rows_needed
from volgrowth.audit.output.result import Audit
from volgrowth.cli import run_command
from volgrowth.commands.audit import inspect_inputs
from volgrowth.demo.cases import write_image_parquet
from volgrowth.errors import OutputError, UsageError


@pytest.fixture(scope="module")
def held(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("held") / "held.parquet"
    write_image_parquet(path, digits[200:320], [f"held-{row}" for row in range(120)])
    return path


@pytest.fixture
def audit(tiny_model, digit_file, held):
    def run(output: Path, **settings: object) -> Audit:
        data = {"data": str(digit_file), "holdout": str(held)}
        given = {"model": str(tiny_model), **data, "engine": "local", "shard_size": 40, **settings}
        return vg.run_audit(vg.AuditConfig.build(output=str(output), **given), quiet=True)

    return run


@pytest.fixture
def other_model(tmp_path):
    save_pipeline(tmp_path / "other", unet(seed=7))
    return tmp_path / "other"


def test_a_reference_model_adds_its_score_to_the_regressors(audit, other_model, tmp_path):
    audit(tmp_path / "reference", model=str(other_model))
    plain = audit(tmp_path / "plain").summary["calibration"]
    with_it = audit(tmp_path / "out", reference=str(tmp_path / "reference")).summary["calibration"]
    assert with_it["features"] == [*plain["features"], "reference"]
    assert with_it["reference"] == str(tmp_path / "reference")
    assert with_it["r2"] != plain["r2"]


def test_a_reference_that_does_not_fit(audit, other_model, held, digits, tmp_path):
    audit(tmp_path / "same")
    with pytest.raises(UsageError, match="it audits the same model"):
        audit(tmp_path / "out", reference=str(tmp_path / "same"))
    with pytest.raises(OutputError, match="holds no audit"):
        audit(tmp_path / "out", reference=str(tmp_path / "nothing"))
    audit(tmp_path / "paper", model=str(other_model), measure={"preset": "paper"})
    with pytest.raises(UsageError, match="its measure is another"):
        audit(tmp_path / "out", reference=str(tmp_path / "paper"))
    audit(tmp_path / "alone", model=str(other_model), holdout=None)
    with pytest.raises(UsageError, match="its held-out set is another"):
        audit(tmp_path / "out", reference=str(tmp_path / "alone"))
    assert not np.any([path.name == "manifest.json" for path in (tmp_path).glob("out/*")])


def test_a_reference_of_which_many_rows_have_no_score_is_refused(audit, other_model, digits, tmp_path):
    data = tmp_path / "data.parquet"
    write_image_parquet(data, digits[:100], list(map(str, range(100))))
    rows = pq.read_table(data).to_pylist()
    for row in rows[:3]:
        row["image"]["bytes"] = b"no image"
    pq.write_table(pa.Table.from_pylist(rows), data)
    other = {"data": str(data), "model": str(other_model)}
    audit(tmp_path / "reference", **other)
    few = r"3.0% of its audited rows have no score, more than the 0.01 .* --retry-failed"
    with pytest.raises(UsageError, match=few):
        audit(tmp_path / "out", data=str(data), reference=str(tmp_path / "reference"))
    audit(tmp_path / "allowed", **other, max_failed=0.05)
    audit(tmp_path / "out", data=str(data), reference=str(tmp_path / "allowed"))


@pytest.mark.parametrize(("preset", "without_loss"), [("paper", 50), ("volume", 0)])
def test_every_preset_ends_in_a_report(audit, digits, preset, without_loss, tmp_path):
    few = {"data": digits[:50], "holdout": digits[200:260]}
    for name, images in few.items():
        write_image_parquet(tmp_path / f"{name}.parquet", images, list(map(str, range(len(images)))))
    files = {name: str(tmp_path / f"{name}.parquet") for name in few}
    finished = audit(tmp_path / "out", measure={"preset": preset}, **files)
    assert f">{preset}<" in (tmp_path / "out/report.html").read_text()
    assert finished.findings["p_value"].null_count == 0
    assert finished.findings["loss_p_value"].null_count == without_loss


def test_held_out_sets_that_do_not_fit_are_said(tiny_model, digit_file, digits, tmp_path, capsys):
    """Shared images by their pixels, near duplicates by their looks, another kind by its distribution."""
    brighter = digits[150:230] // 2 + 128  # so few that five images beyond them all are no flags
    near = np.where(digits[:40] > 0, digits[:40] - 1, 0).astype(np.uint8)
    write_image_parquet(
        tmp_path / "bad.parquet", np.concatenate([digits[:5], near, brighter]), [str(k) for k in range(125)]
    )
    command = ["audit", str(tiny_model), str(digit_file), "--output", str(tmp_path / "out"), "--engine", "local"]
    command.append("--holdout")
    assert run_command([*command, str(tmp_path / "bad.parquet")]) == 0
    said = capsys.readouterr()
    assert "warning: 5 held-out images are in the audited set too" in said.err
    assert re.search(r"warning: \d+ held-out images look like audited ones .* and were left out", said.err)
    assert re.search(r"  but: \d+ of 125 held-out images are audited as well, or look like an audited one", said.out)
    assert "  but: The held-out images are of another kind" in said.out
    found = vg.open_audit(str(tmp_path / "out")).summary["detection"]
    few = max(found["beyond_holdout"], 1)
    assert f"It takes {rows_needed(found['tests'], few):,} to flag {few}." in said.out


def test_what_was_opened_is_printed_and_noted_everywhere(tiny_model, digit_file, held, tmp_path, capsys):
    command = ["audit", str(tiny_model), str(digit_file), "--output", str(tmp_path / "out"), "--engine", "local"]
    command += ["--holdout", str(held), "--id-column", "name", "--preset", "paper"]
    assert run_command(command) == 0
    said = "150 rows of 1 parquet file; images from column image, ids from column name"
    assert capsys.readouterr().out.splitlines()[:4] == [
        f"opened: {said}",
        "left aside: nothing",
        "held out: 120 rows of 1 parquet file; images from column image",
        "left aside: nothing",
    ]
    opened = {
        "kind": "parquet file",
        "files": 1,
        "rows": 150,
        "columns": {"image": "image", "id": "name"},
        "left_aside": [],
    }
    for name in ("manifest.json", "summary.json"):
        content = json.loads((tmp_path / "out" / name).read_text())
        assert content["data"]["opened"] == opened
        assert content["holdout"]["opened"]["rows"] == 120
    assert (tmp_path / "out/report.html").read_text().count(said) == 2


def test_files_of_several_kinds_are_asked_about(tiny_model, digit_file, held, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    shutil.copy(digit_file, tmp_path / "data/train.parquet")
    (tmp_path / "data/picture.png").write_bytes(encode(np.zeros((8, 8), np.uint8)))
    inputs = {"data": [str(tmp_path / "data")], "holdout": [str(digit_file), "--holdout", str(tmp_path / "data")]}
    for kind, given in inputs.items():
        command = ["audit", str(tiny_model), *given, "--output", str(tmp_path / "out"), "--engine", "local"]
        assert run_command(command) == 2, kind
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "1 parquet file (train.parquet) and 1 image file (picture.png)" in said
    settings = {"data": str(tmp_path / "data"), "data_kind": "parquet"}
    settings |= {"holdout": str(tmp_path / "data"), "holdout_kind": "parquet", "holdout_split": "train"}
    inspected = inspect_inputs(vg.AuditConfig.build(model=str(tiny_model), output=str(tmp_path / "out"), **settings))
    for data in (inspected.manifest.data, inspected.manifest.holdout):
        assert data is not None
        assert data.kind == "parquet"
        assert data.opened is not None
        assert [str(each) for each in data.opened.left_aside] == [
            "1 image file (parquet was asked for, such as picture.png)"
        ]


def test_a_report_of_an_older_version_is_refused_in_one_sentence(audit, tmp_path, capsys):
    store = audit(tmp_path / "out").store
    summary = store.read_json("summary.json")
    for lacking in ("detection", "duplicates", "run"):  # the template reads the last one, code the others
        known = {name: value for name, value in summary.items() if name != lacking}
        store.write_json("summary.json", {**known, "volgrowth": "0.0.9"})
        assert run_command(["report", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said == (
            f"volgrowth: {tmp_path}/out/summary.json is not as this version writes it (it lacks {lacking}; written by "
            f"volgrowth 0.0.9): run the same `volgrowth audit` again, which keeps the scores"
        )


WITHOUT_RAY = """
import sys
from importlib import metadata

sys.modules["ray"] = None
installed = metadata.version


def version(name):
    if name == "ray":
        raise metadata.PackageNotFoundError(name)
    return installed(name)


metadata.version = version
from volgrowth.cli import main

main(sys.argv[1:])
"""


def test_the_local_engine_works_where_ray_is_not_installed(tiny_model, digit_file, tmp_path):
    command = ["audit", tiny_model, digit_file, "--output", tmp_path / "out", "--engine", "local", "--preset", "paper"]
    command += ["--trust-model"]
    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, *map(str, command)], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    versions = json.loads((tmp_path / "out/manifest.json").read_text())["versions"]
    assert "ray" not in versions
    assert {"torch", "volgrowth"} <= set(versions)


FROM_A_FILE = """
import torch
import volgrowth as vg

def load(device, dtype):
    denoiser = vg.GaussianDenoiser(0.0, 0.3)
    denoiser.mean = torch.load("mean.pt", weights_only=True).to(device, dtype)
    denoiser.image_shape = (1, 8, 8)
    return denoiser
"""


def test_a_finished_audit_asked_for_again_says_so_and_notices_other_weights(digit_file, tmp_path, monkeypatch, capsys):
    """Weights behind a factory that change under the same name are another model, with exit code 2."""
    import torch

    monkeypatch.chdir(tmp_path)
    (tmp_path / "from_a_file.py").write_text(FROM_A_FILE)
    torch.save(torch.zeros(1, 8, 8), tmp_path / "mean.pt")
    command = ["audit", "factory:from_a_file:load", str(digit_file), "--output", "out", "--engine", "local"]
    assert run_command(command) == 0
    assert "nothing was measured" not in capsys.readouterr().out
    finished = json.loads((tmp_path / "out/summary.json").read_text())["created"]
    assert run_command(command) == 0
    assert f"finished on {finished[:10]} at {finished[11:19]} UTC, nothing was measured\n" in capsys.readouterr().out
    torch.save(torch.full((1, 8, 8), 1e-6), tmp_path / "mean.pt")
    assert run_command(command) == 2
    assert "holds another audit: the model's weights changed (sha256:" in capsys.readouterr().err
