import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from volgrowth.numerics import DDPMSchedule, FlowMatchingSchedule, Schedule, VESchedule, VPSchedule

bounded = settings(max_examples=25, deadline=None, derandomize=True)
TABLE = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
SCHEDULES = [
    VPSchedule(0.1, 20.0),
    VPSchedule(1.0, 1.0),
    DDPMSchedule(TABLE),
    VESchedule(),
    FlowMatchingSchedule(),
]


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@bounded
@given(schedule=st.sampled_from(SCHEDULES), level=st.floats(1e-3, 100.0))
def test_time_inverts_noise_level(schedule: Schedule, level: float) -> None:
    t = schedule.time(scalar(level))
    alpha, sigma = schedule(t)
    assert math.isclose(sigma / alpha, level, rel_tol=1e-10)
    assert math.isclose(schedule.noise_level(t), level, rel_tol=1e-10)


@bounded
@given(schedule=st.sampled_from([SCHEDULES[0], SCHEDULES[1], SCHEDULES[2]]), level=st.floats(1e-3, 100.0))
def test_variance_is_preserved(schedule: Schedule, level: float) -> None:
    alpha, sigma = schedule(schedule.time(scalar(level)))
    assert math.isclose(alpha**2 + sigma**2, 1.0, rel_tol=1e-12)


@bounded
@given(t=st.floats(1e-8, 1.0))
def test_vp_integrates_beta(t: float) -> None:
    # alpha^2 = exp(-integral of beta), in expm1 so that small t keep their digits
    integral = 0.1 * t + 19.9 * t * t / 2
    alpha, sigma = VPSchedule(0.1, 20.0)(scalar(t))
    assert math.isclose(alpha, math.exp(-integral / 2), rel_tol=1e-13)
    assert math.isclose(sigma, math.sqrt(-math.expm1(-integral)), rel_tol=1e-13)
    assert math.isclose(VPSchedule(0.1, 20.0).time(sigma / alpha), t, rel_tol=1e-9)


def test_ddpm_reproduces_its_table() -> None:
    alpha, sigma = DDPMSchedule(TABLE)(torch.arange(1000, dtype=torch.float64))
    assert_close(alpha**2, TABLE, rtol=1e-12, atol=0)
    assert_close(sigma**2, 1 - TABLE, rtol=1e-12, atol=0)
    assert len(DDPMSchedule(TABLE)) == 1000


def test_ddpm_is_log_linear_between_entries_and_beyond() -> None:
    levels = ((1 - TABLE) / TABLE).sqrt()
    schedule = DDPMSchedule(TABLE)
    t = torch.tensor([10.25, -1.0, 1000.0], dtype=torch.float64)
    expected = torch.stack(
        [
            levels[10] ** 0.75 * levels[11] ** 0.25,
            levels[0] ** 2 / levels[1],
            levels[999] ** 2 / levels[998],
        ]
    )
    assert_close(schedule.noise_level(t), expected, rtol=1e-12, atol=0)
    assert_close(schedule.time(expected), t, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_float32_levels_find_their_time(schedule: Schedule) -> None:
    levels = torch.tensor([0.02, 0.3, 2.0])
    assert_close(schedule.time(levels).double(), schedule.time(levels.double()), rtol=1e-5, atol=1e-6)


def test_straight_paths_and_exploding_variance() -> None:
    t = torch.tensor([0.1, 0.75], dtype=torch.float64)
    assert_close(FlowMatchingSchedule().noise_level(t), torch.tensor([1 / 9, 3.0], dtype=torch.float64))
    alpha, sigma = VESchedule()(t)
    assert alpha.tolist() == [1.0, 1.0]
    assert sigma.tolist() == t.tolist()


@pytest.mark.parametrize("table", [[0.5], [0.5, 0.6], [1.0, 0.5], [0.5, 0.0], [0.5, math.nan]])
def test_a_table_that_does_not_fall_is_refused(table: list[float]) -> None:
    with pytest.raises(ValueError, match=r"alphas_cumprod .*two or more numbers that fall strictly within \(0, 1\)"):
        DDPMSchedule(torch.tensor(table, dtype=torch.float64))
