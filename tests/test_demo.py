"""The demo, whole: what it prints is measured here, and its model serves audits of every kind of source."""

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

import volgrowth as vg

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]


def test_calibrated_growth_finds_what_the_model_reproduces_and_raw_growth_does_not(demo):
    truth = vg.open_audit(str(demo / "audit")).summary["verification"]
    assert 15 <= truth["reproduced_images"] <= 25
    assert truth["calibrated"]["auroc"] >= 0.97
    assert truth["calibrated"]["tpr_at_1_fpr"] >= 0.85
    assert truth["raw"]["tpr_at_1_fpr"] <= 0.5


def test_single_copies_look_like_held_out_images(demo):
    """Growth sees memorization, not membership (FINDINGS section 2): AUROC of single-copy members in [.42, .58]."""
    from volgrowth.analysis.detection import auroc

    audit = vg.open_audit(str(demo / "audit"))
    assert audit.holdout_findings is not None
    once = audit.findings.column("copies").to_numpy() == 1
    members = audit.findings.column("growth").to_numpy()[once]
    strangers = audit.holdout_findings.column("growth").to_numpy()
    score = np.concatenate([members, strangers])
    assert 0.42 <= auroc(score, np.arange(len(score)) < len(members)) <= 0.58


def test_the_demo_s_scores_do_not_depend_on_source_shards_workers_or_batch(demo):
    """To the bit for equal micro-batch shapes, 1e-5 relative otherwise."""
    data = datasets.Dataset.from_parquet(str(demo / "train.parquet")).select(range(200))
    data = data.cast_column("image", datasets.Image(decode=False))
    data.save_to_disk(demo / "saved")
    pq.write_table(data.data.table, demo / "some.parquet")
    (demo / "images").mkdir()
    for row, image in enumerate(data["image"]):
        (demo / "images" / f"{row:04d}.png").write_bytes(image["bytes"])

    def scores(name, **settings):
        output = demo / f"out-{len(list(demo.iterdir()))}"
        config = vg.AuditConfig.build(model=str(demo / "model"), data=str(demo / name), output=str(output), **settings)
        return vg.run_audit(config, quiet=True).scores.drop_columns(["image_id", "source", "batch"])

    reference = scores("some.parquet")
    assert scores("saved", shard_size=33).equals(reference)
    assert scores("images", shard_size=101, workers=1).equals(reference)
    other = scores("images", batch_size=23)
    for column in ("growth", "loss"):
        np.testing.assert_allclose(other[column].to_numpy(), reference[column].to_numpy(), rtol=1e-5)


def test_the_report_names_the_reproduced_images(demo):
    page = (demo / "audit/report.html").read_text()
    audit = vg.open_audit(str(demo / "audit"))
    findings = audit.findings.take(audit.summary["verification"]["rows"])
    shown = {
        cluster
        for cluster, name in zip(findings["cluster"].to_pylist(), findings["image_id"].to_pylist(), strict=True)
        if name in page
    }
    assert shown == set(findings["cluster"].to_pylist())
    assert len(shown) == audit.summary["verification"]["reproduced_images"]
