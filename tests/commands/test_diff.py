"""`volgrowth diff` on audits that two models really gave."""

import json
import shutil
from pathlib import Path

import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

import volgrowth as vg
from volgrowth.analysis.comparison.changes import CHANGES
from volgrowth.analysis.comparison.comparing import compare_audits
from volgrowth.cli import run_command
from volgrowth.commands.audit import run_audit
from volgrowth.demo.cases import write_image_parquet
from volgrowth.storage.store import Store

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def other_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network with other random weights: another checkpoint."""
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(1)
    network = UNet2DModel.from_config(UNet2DModel.load_config(tiny_model / "unet"))
    folder = tmp_path_factory.mktemp("models") / "other"
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def audits(tiny_model, other_model, digit_file, digits, tmp_path_factory):
    """Outputs of one model on 150 digits, and of the other on a curated set: the first digit dropped, one copied."""
    folder = tmp_path_factory.mktemp("diff")
    write_image_parquet(folder / "held.parquet", digits[150:300], [f"held-{row}" for row in range(150)])
    curated = [3, *range(1, 150)]
    write_image_parquet(folder / "curated.parquet", digits[curated], [f"kept-{row:04d}" for row in curated])
    for name, model, data in (("before", tiny_model, digit_file), ("after", other_model, folder / "curated.parquet")):
        config = vg.AuditConfig.build(
            model=str(model),
            data=str(data),
            holdout=str(folder / "held.parquet"),
            output=str(folder / name),
            id_column="name",
            engine="local",
        )
        run_audit(config, quiet=True)
    return folder


def test_the_command_says_what_changed_and_writes_the_table(audits, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_command(["diff", str(audits / "before"), str(audits / "after"), "--table", "changes.parquet"]) == 0
    said = capsys.readouterr().out
    assert "149 distinct images are in both" in said
    assert "1 are only in A, of which 0 flagged there; 0 only in B" in said
    assert "held-out images that both audits share" in said
    table = pq.read_table(tmp_path / "changes.parquet")
    assert run_command(["diff", str(audits / "before"), str(audits / "after"), "--table", "changes.csv"]) == 0
    assert capsys.readouterr().out == said
    assert csv.read_csv("changes.csv")["row_a"].to_pylist() == table["row_a"].to_pylist()
    found = compare_audits(vg.open_audit(str(audits / "before")), vg.open_audit(str(audits / "after")))
    assert table.cast(CHANGES).equals(found.table)
    assert found.null_rows == 150
    rows = {row["image_id"]: row for row in table.to_pylist()}
    assert sorted(rows) == [f"digit-{row:04d}" for row in range(1, 150)]
    copied, other = rows["digit-0003"], rows["digit-0007"]
    assert (copied["row_a"], copied["row_b"], copied["copies_a"], copied["copies_b"]) == (3, 0, 1, 2)
    assert (other["row_a"], other["row_b"], other["copies_a"], other["copies_b"]) == (7, 7, 1, 1)


def test_flags_by_different_evidence_are_said(audits, tmp_path, capsys):
    """Weights of parts came later than parts; an audit of an earlier version has none."""
    before, after = str(audits / "before"), str(shutil.copytree(audits / "after", tmp_path / "after"))
    assert run_command(["diff", before, after]) == 0
    assert "by different evidence" not in capsys.readouterr().out
    file = tmp_path / "after/summary.json"
    summary = json.loads(file.read_text())
    parts = summary["calibration"]["evidence"]["parts"]
    for part in parts.values():
        del part["weight"]
    del summary["sha256"]
    file.write_text(json.dumps(summary))
    assert run_command(["diff", before, after]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "The audits flag by different evidence (A: loss + 0.5 x noise norm, calibrated on held-out images; B: " in said
    )
    assert "B: loss + noise norm, calibrated on held-out images, by an earlier version)" in said
    assert run_command(["trend", before, after, "--page", str(tmp_path / "trend.html")]) == 0
    assert "another held-out set" not in (said := capsys.readouterr().out)
    assert f"{after} flags by other evidence than {before}: an image may be flagged" in " ".join(said.split())
    del summary["calibration"]["evidence"]
    summary["calibration"]["reference"] = "other"
    file.write_text(json.dumps(summary))
    assert run_command(["diff", before, after]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "B: growth, calibrated on held-out images and a reference audit, by an earlier version)" in said


def test_what_cannot_be_compared_is_one_sentence_and_exit_code_two(audits, tmp_path, capsys):
    before, after = str(audits / "before"), str(audits / "after")
    for arguments, reason in (
        ([before, before], "are the same audit"),
        ([before, str(tmp_path / "nowhere")], "holds no audit"),
        ([before, after, "--fdr", "1"], "expected above 0 and below 1"),
        ([before, after, "--table", str(tmp_path / "changes.txt")], "ends in .parquet"),
        ([before], "diff needs OUT_B"),
    ):
        assert run_command(["diff", *arguments]) == 2
        captured = capsys.readouterr()
        assert reason in " ".join(captured.err.split())
        assert "Traceback" not in captured.err
        assert captured.out == ""


def test_findings_of_an_older_version_are_refused(audits, tmp_path, capsys):
    old = tmp_path / "old"
    shutil.copytree(audits / "after", old)
    store = Store(str(old))
    findings = store.read_table("findings.parquet")
    store.write_table("findings.parquet", findings.drop_columns(["outside_range"]), {})
    assert run_command(["diff", str(audits / "before"), str(old)]) == 2
    assert "has no column outside_range (an older version wrote it)" in " ".join(capsys.readouterr().err.split())


def test_help_has_an_example(capsys):
    assert run_command(["diff", "--help"]) == 0
    assert "volgrowth diff out-before out-after --table changes.parquet" in capsys.readouterr().out
