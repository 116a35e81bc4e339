"""The demo, whole: what it prints is measured here, and its model serves audits of every kind of source."""

from math import log10

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import spearmanr

import volgrowth as vg
from volgrowth.audit.scoring.measures import Flow, measure_images
from volgrowth.config import SCREEN_EVALUATIONS, VolumeMeasure
from volgrowth.demo.cases import digits_case, to_tensor

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]


def test_evidence_finds_what_the_model_reproduces_and_raw_growth_misses_a_third(demo):
    truth = vg.open_audit(str(demo / "audit")).summary["verification"]
    assert 15 <= truth["reproduced_images"] <= 25
    assert truth["evidence"]["auroc"] >= 0.99
    assert truth["evidence"]["tpr_at_1_fpr"] >= 0.95
    assert truth["flagged_reproduced"] == truth["reproduced_images"]
    assert truth["raw"]["tpr_at_1_fpr"] <= 2 / 3


def exact_volume(model, images, levels, monkeypatch):
    """Log volume by the trace of the dense Jacobian, all of its columns, at the points that `trace_growth` visits."""
    noise, path, rates = model.noise, [], []

    def visited(y, level):
        path.append(y.detach())
        return noise(y, level)

    with monkeypatch.context() as patch:
        patch.setattr(model, "noise", visited)
        vg.trace_growth(model, images, levels)
    for y, level in zip(path, levels, strict=True):
        y.requires_grad_()
        columns = model.noise(y, level).flatten(1).sum(0)
        diagonal = [torch.autograd.grad(columns[k], y, retain_graph=True)[0].flatten(1)[:, k] for k in range(64)]
        rates.append(level * torch.stack(diagonal).sum(0))
    return torch.trapezoid(torch.stack(rates), levels.log(), dim=0)


def test_volume_ranks_as_the_exact_volume_of_the_dense_jacobian(demo, monkeypatch):
    """Preset `volume` against all columns of the Jacobian on a finer grid, images of all kinds: Spearman >= .99."""
    case, model = digits_case(), vg.load_model(str(demo / "model"))
    plain = np.char.startswith(case.names, "plain")
    kinds = (case.copies > 1, plain, ~plain & (case.copies == 1), np.arange(len(plain)) % 40 == 3)
    images = to_tensor(case.train[case.first[np.concatenate([np.flatnonzero(kind)[:6] for kind in kinds])]])
    measure = VolumeMeasure()
    levels = torch.logspace(log10(measure.smallest_level), log10(measure.largest_level), 28, dtype=torch.float64)
    growth = measure_images(Flow(model), images, list(range(len(images))), measure, seed=0).columns["growth"]
    assert spearmanr(exact_volume(model, images, levels, monkeypatch), growth).statistic >= 0.99


@pytest.fixture(scope="module")
def distinct(demo, tmp_path_factory):
    """The demo's training set with one row of each family, as a file, and the rows that these are in the whole set."""
    case, path = digits_case(), tmp_path_factory.mktemp("distinct") / "distinct.parquet"
    rows = np.sort(case.first)
    pq.write_table(pq.read_table(demo / "train.parquet").take(rows), path)
    return path, rows


def test_without_held_out_images_flags_rest_on_an_assumption(demo, distinct, tmp_path):
    """And the page says so; what they find is the same, what is false among them may be more than was asked for."""
    (data, rows), known = distinct, vg.open_audit(str(demo / "audit")).summary["verification"]
    settings = {"model": str(demo / "model"), "data": str(data), "id_column": "name", "engine": "local"}
    alone = vg.run_audit(vg.AuditConfig.build(**settings, output=str(tmp_path), shard_size=512), quiet=True)
    assert "the error rate is an assumption" in " ".join(alone.summary["caveats"])
    assert "on an assumption" in (tmp_path / "report.html").read_text()
    first = alone.findings["row"].to_numpy() == alone.findings["identical"].to_numpy()
    flags = alone.findings["memorized"].to_numpy(zero_copy_only=False)[first].astype(bool)
    truth = np.isin(rows, known["rows"])[first]
    assert truth.sum() == known["reproduced_images"]
    assert (flags & truth).sum() >= 0.85 * truth.sum()
    assert (flags & ~truth).sum() <= 0.4 * flags.sum()


def flagged(audit, rows):
    """Return the rows of the demo's set whose image is flagged, by its first row there; `rows` are those audited."""
    return set(rows[audit.findings["identical"].filter(audit.findings["memorized"]).to_numpy()].tolist())


def test_a_cascade_finds_the_flags_at_a_fraction_of_the_cost(demo, distinct, tmp_path):
    """Of its audited rows; the held-out ones cost what they did and the screen."""
    (data, rows), whole = distinct, vg.open_audit(str(demo / "audit"))
    held = {"holdout": str(demo / "holdout.parquet"), "shard_size": 256, "engine": "local"}
    settings = {"model": str(demo / "model"), "data": str(data), "id_column": "name", **held}
    found = vg.run_audit(vg.AuditConfig.build(**settings, output=str(tmp_path), cascade=True), quiet=True)
    before, after = flagged(whole, np.arange(len(whole.findings))), flagged(found, rows)
    assert len(before) >= 15
    assert len(before & after) >= 0.95 * len(before)
    assert len(after - before) <= 2
    audited = [sum(filter(None, nfe.to_pylist())) for nfe in (whole.scores["nfe"].take(rows), found.scores["nfe"])]
    assert audited[1] <= 0.9 * audited[0]  # standard takes one evaluation more than the screen
    share, volume = found.summary["cascade"]["rows_measured"] / len(found.scores), VolumeMeasure()
    assert SCREEN_EVALUATIONS + share * volume.evaluations_after_screen <= 0.3 * volume.evaluations
    assert found.summary["cascade"]["missed_in_sample"] == 0


def test_single_copies_look_like_held_out_images(demo):
    """Growth sees memorization, not membership: AUROC of single-copy members in [.42, .58]."""
    from volgrowth.analysis.ranking import auroc

    audit = vg.open_audit(str(demo / "audit"))
    assert audit.holdout_findings is not None
    once = audit.findings.column("copies").to_numpy() == 1
    members = audit.findings.column("growth").to_numpy()[once]
    strangers = audit.holdout_findings.column("growth").to_numpy()
    score = np.concatenate([members, strangers])
    assert 0.42 <= auroc(score, np.arange(len(score)) < len(members)) <= 0.58


def test_the_demo_s_scores_do_not_depend_on_source_shards_workers_or_batch(demo, ray_session, tmp_path):
    """To the bit for equal micro-batch shapes, 1e-5 relative otherwise."""
    data = datasets.Dataset.from_parquet(str(demo / "train.parquet")).select(range(200))
    data = data.cast_column("image", datasets.Image(decode=False))
    data.save_to_disk(tmp_path / "saved")
    pq.write_table(data.data.table, tmp_path / "some.parquet")
    (tmp_path / "images").mkdir()
    for row, image in enumerate(data["image"]):
        (tmp_path / "images" / f"{row:04d}.png").write_bytes(image["bytes"])

    def scores(name, **settings):
        output = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        known = {"model": str(demo / "model"), "data": str(tmp_path / name), "output": str(output), "engine": "local"}
        audit = vg.run_audit(vg.AuditConfig.build(**{**known, **settings}), quiet=True)
        return audit.scores.drop_columns(["image_id", "source", "batch"])

    reference = scores("some.parquet")
    assert scores("saved", shard_size=33).equals(reference)
    assert scores("images", shard_size=51, workers=2, engine="ray").equals(reference)
    other = scores("images", batch_size=23)
    for column in ("growth", "loss"):
        np.testing.assert_allclose(other[column].to_numpy(), reference[column].to_numpy(), rtol=1e-5, atol=1e-6)


def test_the_report_names_the_reproduced_images(demo):
    page = (demo / "audit/report.html").read_text()
    audit = vg.open_audit(str(demo / "audit"))
    findings = audit.findings.take(audit.summary["verification"]["rows"])
    shown = {
        group
        for group, name in zip(findings["identical"].to_pylist(), findings["image_id"].to_pylist(), strict=True)
        if name in page
    }
    assert shown == set(findings["identical"].to_pylist())
    assert len(shown) == audit.summary["verification"]["reproduced_images"]
