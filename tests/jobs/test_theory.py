"""The experiments of the job: what they compute by formula, and the page they leave."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from jobs.theory import __main__ as theory
from jobs.theory.flow_ends import ends_of, obtuse_sums
from jobs.theory.seen import GROUPS, LOWEST, SWITCH, Laboratory, auroc, formula_growth
from jobs.theory.setting import Bench, log_levels, simplex
from volgrowth.numerics.flow import decode
from volgrowth.theory import classify

BENCH = Bench(quick=True, say=lambda line: None)


@pytest.fixture(scope="module")
def lab() -> Laboratory:
    return Laboratory(BENCH)


def test_growth_is_its_formula_and_tells_corners_from_manifold_points_but_not_training_from_virtual_ones(
    lab: Laboratory,
) -> None:
    images = torch.cat([lab.groups[group][:4] for group in GROUPS[:3]])
    growth = lab.growth(images, steps=1)
    np.testing.assert_allclose(growth, formula_growth(lab, images), rtol=1e-10)
    np.testing.assert_allclose(lab.growth(images, steps=3), growth, rtol=1e-10)
    point_mass = 30 * np.log(SWITCH / LOWEST)
    np.testing.assert_allclose(growth[:8], point_mass, rtol=1e-12)
    assert growth[8:].max() < point_mass - 4


def test_basin_mass_is_the_share_of_samples(lab: Laboratory) -> None:
    """Drawn from the blurred training points, denoised down; the commonest corners."""
    count, generator = 20_000, torch.Generator().manual_seed(0)
    chosen = torch.multinomial(lab.weights, count, True, generator=generator)
    noise = SWITCH * torch.randn(count, 1, 5, 6, generator=generator, dtype=torch.float64)
    ends = classify(lab.low, decode(lab.low, lab.low.points[chosen] + noise, log_levels(LOWEST, SWITCH, 3)), 1e-8)
    found = Counter(end.members for end in ends if end.kind in ("origin", "training"))
    shares = [found[members] / count for members in [(), *((n,) for n in range(1, 11))]]
    expected = np.exp(lab.log_basin_mass(lab.low.points))
    np.testing.assert_allclose(shares, expected, atol=4 * np.sqrt(expected.max() / count))


def test_b_is_the_log_density_of_the_flow(lab: Laboratory) -> None:
    """At corners the flow does not move: B = D log(s_T / s_0) + log p_T there."""
    images = lab.groups["virtual"][:5]
    blurred = lab.mixture.log_prob(images, torch.tensor(SWITCH, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(lab.log_density(images), 30 * np.log(SWITCH / LOWEST) + blurred, rtol=1e-10)


def test_ties_count_half() -> None:
    assert auroc(np.ones(3), np.ones(4)) == 0.5
    assert auroc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0


def test_sums_by_the_criterion_and_by_the_flow_are_the_published_ones() -> None:
    for row in obtuse_sums(BENCH):
        assert row["stable"] == row["by the flow"] == row["published"]


def test_points_lie_along_axes_or_at_their_angle() -> None:
    points = simplex([1.0, 2.0], -0.1, 4)
    assert points[1] @ points[2] == pytest.approx(-0.2)
    assert torch.equal(simplex([1.0, 2.0]), torch.tensor([[0, 0], [1, 0], [0, 2]], dtype=torch.float64))


def test_trained_networks_end_somewhere() -> None:
    row = ends_of(BENCH, 3)
    assert sum(value for name, value in row.items() if name != "N") == pytest.approx(1.0)
    assert row["origin"] + row["training"] > 0.5


def test_the_job_leaves_tables_pictures_and_a_page(tmp_path: Path) -> None:
    assert theory.main(["--output", str(tmp_path), "--quick", "--only", "inertia", "linear"]) == 0
    page = (tmp_path / "theory.md").read_text()
    for picture in re.findall(r"\]\((theory/.*\.png)\)", page):
        assert (tmp_path / picture).stat().st_size > 5000
    assert len(re.findall(r"!\[", page)) == 2
    assert "python jobs/theory.py --output" in page
    rows = pq.read_table(tmp_path / "linear" / "divergence.parquet").to_pylist()
    assert max(rows, key=lambda row: row["seen once"])["n"] == 40
    widths = {line.count("|") - line.count("\\|") for line in page.splitlines() if line.startswith("| n |")}
    assert widths == {5}
