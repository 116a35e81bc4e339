"""`volgrowth verify --rates`, with a model that makes each of its images at a rate that is known."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import volgrowth as vg
from volgrowth.analysis.judging import JudgedTables
from volgrowth.analysis.verification.generated import choose_rated
from volgrowth.cli import run_command
from volgrowth.demo.cases import digit_images, write_image_parquet

KNOWN = 20


def weights() -> np.ndarray:
    """Return the rate at which the model makes each image: three of their own, the others the rest alike."""
    own = np.array([0.3, 0.05, 0.01])
    return np.concatenate([own, np.full(KNOWN - len(own), (1 - own.sum()) / (KNOWN - len(own)))])


def known_images(device: torch.device, dtype: torch.dtype) -> vg.EmpiricalDenoiser:
    """Return the factory's model: the posterior mean of the first digits, with these weights."""
    points = torch.from_numpy(digit_images()[:KNOWN] / 127.5 - 1).to(device, torch.float64)
    denoiser = vg.EmpiricalDenoiser(points, torch.from_numpy(weights()))
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    denoiser.schedule = vg.DDPMSchedule((1 - betas).cumprod(0))
    return denoiser


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    folder, digits = tmp_path_factory.mktemp("rated"), digit_images()
    write_image_parquet(folder / "data.parquet", digits[:KNOWN], [f"row-{row}" for row in range(KNOWN)])
    write_image_parquet(folder / "held.parquet", digits[200:290], [f"held-{row}" for row in range(90)])
    config = vg.AuditConfig.build(
        model=f"factory:{__name__}:known_images",
        data=str(folder / "data.parquet"),
        holdout=str(folder / "held.parquet"),
        output=str(folder / "out"),
        engine="local",
        trust_model=True,
    )
    vg.run_audit(config, quiet=True)
    return folder / "out"


def verify(output, *options):
    return run_command(["verify", str(output), "--samples", "200", *options, "--engine", "local"])


def test_rates_are_the_weights_of_the_model(audited, capsys):
    assert verify(audited) == 0
    assert vg.open_audit(str(audited)).findings["rate"].null_count == KNOWN
    assert verify(audited, "--rates") == 0
    said, audit = capsys.readouterr().out, vg.open_audit(str(audited))
    findings, found = audit.findings, audit.summary["verification"]["rates"]
    rate = findings["rate"].to_numpy()
    measured = np.isfinite(rate)
    assert measured.sum() == found["measured"] >= 15
    assert np.all(np.abs(np.log(rate / weights())[measured]) < np.log(2.5))
    low, high = (findings[name].to_numpy()[measured] for name in ("rate_low", "rate_high"))
    assert np.all((low < rate[measured]) & (rate[measured] < high))
    total = found["copies_per_million"]
    assert total["rate"] == pytest.approx(1e6 * rate[measured].sum(), rel=1e-5)
    assert total["low"] < 1e6 * weights()[measured].sum() < total["high"]
    assert found["checked"]["within"] >= 0.9 * found["checked"]["images"]
    page = (audited / "report.html").read_text()
    for text in (said, page):
        assert "would be copies of one of these images" in text
    assert page.count("<dt>made</dt><dd>1 in ") >= 15


def test_what_was_measured_is_kept(audited):
    assert verify(audited, "--rates") == 0
    path = audited / "verification/rates.parquet"
    before = pq.read_table(path)
    written = path.stat().st_mtime_ns
    assert verify(audited, "--rates") == 0
    assert path.stat().st_mtime_ns == written
    short = before.slice(0, 3).replace_schema_metadata(before.schema.metadata)
    pq.write_table(short, path)
    assert verify(audited, "--rates") == 0
    after = pq.read_table(path)
    assert after.sort_by("row").equals(before.sort_by("row"))


def test_another_verification_without_rates_forgets_them(audited):
    assert verify(audited, "--rates") == 0
    assert verify(audited) == 0
    assert vg.open_audit(str(audited)).summary["verification"]["rates"] is None


def test_images_are_asked_for_by_their_ids(audited, tmp_path, capsys):
    ids = tmp_path / "ids.txt"
    audit = vg.open_audit(str(audited))
    ids.write_text("\n".join(audit.scores["image_id"].take([0, 7]).to_pylist()))
    findings = audit.findings.set_column(
        audit.findings.schema.get_field_index("q_value"), "q_value", pa.array(np.ones(KNOWN), pa.float64())
    )
    assert verify(audited, "--rates-of", str(ids)) == 0
    audit = vg.open_audit(str(audited))
    assert np.isfinite(audit.findings["rate"].to_numpy()[[0, 7]]).all()
    rated, asked = choose_rated(JudgedTables(findings, audit.scores, None), [7, 0])
    assert (rated["row"].to_pylist(), asked) == ([0, 7], 2)


def test_an_id_that_is_not_there_is_refused_before_anything_is_drawn(audited, tmp_path, capsys):
    ids = tmp_path / "ids.txt"
    ids.write_text(f"{vg.open_audit(str(audited)).scores['image_id'][3]}\nrow-99\n")
    assert verify(audited, "--rates-of", str(ids)) == 2
    assert "--rates-of names 'row-99', which is no image_id of this audit" in capsys.readouterr().err


def test_a_file_without_ids_is_refused(audited, tmp_path, capsys):
    ids = tmp_path / "ids.txt"
    ids.write_text("\n")
    assert verify(audited, "--rates-of", str(ids)) == 2
    assert "--rates-of names no image: expected one id a line" in capsys.readouterr().err
