"""The experiments of the theory: their formulas against measurements, and the places of the page that they fill."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.pages import DOCS
from jobs.theory import __main__ as theory
from jobs.theory.fall import tolerated_share, widest_copy
from jobs.theory.flow_ends import obtuse_sums
from jobs.theory.seen import GROUPS, LOWEST, SWITCH, KnownModel
from jobs.theory.setting import Laboratory, log_levels, simplex
from jobs.theory.trained_networks import ends_of
from volgrowth.numerics import EmpiricalDenoiser
from volgrowth.numerics.flow import decode
from volgrowth.theory import HybridDenoiser, MinNormDenoiser, classify

LAB = Laboratory(quick=True)


@pytest.fixture(scope="module")
def model() -> KnownModel:
    return KnownModel(LAB)


def test_growth_is_its_formula_and_tells_corners_from_manifold_points_but_not_training_from_virtual_ones(
    model: KnownModel,
) -> None:
    images = torch.cat([model.groups[group][:4] for group in GROUPS[:3]])
    growth = model.growth(images, steps=1)
    np.testing.assert_allclose(growth, model.formula_growth(images), rtol=1e-10)
    np.testing.assert_allclose(model.growth(images, steps=3), growth, rtol=1e-10)
    point_mass = 30 * np.log(SWITCH / LOWEST)
    np.testing.assert_allclose(growth[:8], point_mass, rtol=1e-12)
    assert growth[8:].max() < point_mass - 4


def test_basin_mass_is_the_share_of_samples(model: KnownModel) -> None:
    """Drawn from the blurred training points, denoised down; the commonest corners."""
    count, generator = 20_000, torch.Generator().manual_seed(0)
    chosen = torch.multinomial(model.weights, count, True, generator=generator)
    noise = SWITCH * torch.randn(count, 1, 5, 6, generator=generator, dtype=torch.float64)
    ends = classify(model.low, decode(model.low, model.low.points[chosen] + noise, log_levels(LOWEST, SWITCH, 3)), 1e-8)
    found = Counter(end.members for end in ends if end.kind in ("origin", "training"))
    shares = [found[members] / count for members in [(), *((n,) for n in range(1, 11))]]
    expected = np.exp(model.log_basin_mass(model.low.points))
    np.testing.assert_allclose(shares, expected, atol=4 * np.sqrt(expected.max() / count))


def test_b_is_the_log_density_of_the_flow(model: KnownModel) -> None:
    """At corners the flow does not move: B = D log(s_T / s_0) + log p_T there."""
    images = model.groups["virtual"][:5]
    blurred = model.mixture.log_prob(images, torch.tensor(SWITCH, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(model.log_density(images), 30 * np.log(SWITCH / LOWEST) + blurred, rtol=1e-10)


def test_sums_by_the_criterion_and_by_the_flow_are_the_published_ones() -> None:
    for row in obtuse_sums(LAB):
        assert row["stable"] == row["by the flow"] == row["published"]


def test_points_lie_along_axes_or_at_their_angle() -> None:
    points = simplex([1.0, 2.0], -0.1, 4)
    assert points[1] @ points[2] == pytest.approx(-0.2)
    assert torch.equal(simplex([1.0, 2.0]), torch.tensor([[0, 0], [1, 0], [0, 2]], dtype=torch.float64))


def test_trained_networks_end_somewhere() -> None:
    row = ends_of(LAB, 3)
    assert sum(value for name, value in row.items() if name != "N") == pytest.approx(1.0)
    assert row["origin"] + row["training"] > 0.5


@pytest.mark.parametrize("tolerance", [0.02, 0.2])
def test_the_share_of_memorized_samples_is_that_of_the_closed_form(tolerance: float) -> None:
    """Samples that come within the tolerance of a training point, of the min-norm denoiser with this margin."""
    margin, level, samples = 1.2, 0.2, 2000
    points = simplex([1.0] * 4, dimension=12)
    hybrid = HybridDenoiser(MinNormDenoiser(points, margin), EmpiricalDenoiser(points), level * 1.001)
    start = points[torch.arange(samples) % 5] + 3.0 * LAB.randn(samples, 12, purpose=99)
    drawn = decode(hybrid, start, torch.cat([log_levels(1e-3, level, 1), log_levels(level, 3.0, 300)[1:]]))
    ends = [end.kind for end in classify(MinNormDenoiser(points, margin), drawn, tolerance)]
    said = tolerated_share(margin, level, 5, tolerance)
    assert (ends.count("origin") + ends.count("training")) / samples == pytest.approx(said, abs=0.035)
    assert tolerated_share(margin, level, 2, tolerance) > said > tolerated_share(margin, level, 9, tolerance)


def test_the_widest_of_so_many_copies() -> None:
    drawn = LAB.randn(20_000, 60, purpose=98).amax(1).mean()
    assert widest_copy(60) == pytest.approx(drawn.item(), rel=0.01)


def test_the_job_fills_the_places_of_its_experiments_alone(tmp_path: Path) -> None:
    assert theory.run_theory(["--output", str(tmp_path), "--quick", "--only", "inertia", "linear"]) == 0
    committed, page = (DOCS / "theory.md").read_text(), (tmp_path / "theory.md").read_text()
    place = re.compile(r"<!-- begin ([\w-]+) -->\n(.*?)<!-- end \1 -->", re.DOTALL)
    before, after = dict(place.findall(committed)), dict(place.findall(page))
    changed = {name for name in before if before[name] != after[name]}
    assert changed >= {"inertia-table", "inertia-run", "linear-divergence", "linear-run"}
    assert {name.split("-")[0] for name in changed} == {"inertia", "linear"}
    assert place.sub("", page) == place.sub("", committed)
    for name in ("inertia-inertia", "linear-divergence"):
        assert f"](theory/{name}.png)" in page
        assert (tmp_path / "theory" / f"{name}.png").stat().st_size > 5000
    rows = json.loads((tmp_path / "theory" / "linear.json").read_text())["tables"]["divergence"]
    assert max(rows, key=lambda row: row["seen once"])["n"] == 40


def test_the_committed_page_has_a_place_for_every_experiment() -> None:
    text = (DOCS / "theory.md").read_text()
    for name in theory.EXPERIMENTS:
        assert f"<!-- begin {name} -->" in text
        assert f"<!-- begin {name}-run -->" in text
