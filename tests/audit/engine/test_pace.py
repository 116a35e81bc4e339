"""From what age on a task counts as hung, and what the display says of a task that takes long."""

import pytest

from volgrowth.audit.engine.ledger import Task
from volgrowth.audit.engine.pace import Pace
from volgrowth.audit.engine.progress import STALL_SECONDS, AuditProgress


def task(rows: int = 10, method: str = "score", alike: str = "") -> Task:
    return Task("it", method, (), lambda _: (), rows=rows, alike=alike)


def test_ten_times_the_median_of_a_row_counts_as_hung_but_nothing_younger_than_the_least_age():
    pace = Pace(minutes=1)
    for seconds in (30, 40, 500):
        pace.note(task(rows=10), seconds, first=False)
    assert pace.limit(task(rows=100), 1, first=False) == 10 * 4 * 100
    assert pace.limit(task(rows=1, method="probe", alike="score"), 1, first=False) == 60
    assert pace.limit(task(rows=1, method="noise_floor"), 1, first=False) == 600  # none of its kind was answered


def test_what_nothing_is_known_of_gets_ten_times_the_least_age_and_more_at_each_attempt():
    pace = Pace(minutes=5)
    assert [pace.limit(task(), attempt, first=True) for attempt in (1, 2, 3)] == [3000, 6000, 9000]


def test_the_first_task_of_a_worker_may_compile_as_long_as_others_did():
    pace = Pace(minutes=1)
    pace.note(task(), 5, first=False)
    assert pace.limit(task(), 1, first=True) == 600
    pace.note(task(), 300, first=True)
    pace.note(task(), 5, first=False)
    assert pace.limit(task(), 1, first=True) == 10 * 300
    assert pace.limit(task(), 1, first=False) == 60


@pytest.mark.parametrize(
    ("still", "oldest", "said"),
    [
        (
            360.0,
            ("rows 0 to 5 of scores", 361.0),
            "no shard for 6 minutes, oldest task rows 0 to 5 of scores (6 minutes)",
        ),
        (STALL_SECONDS + 10, ("rows 0 to 5 of scores", 30.0), "no shard for 70 seconds, oldest task rows 0 to 5"),
        (1.0, ("rows 0 to 5 of scores", 361.0), None),
        (360.0, None, None),
    ],
)
def test_when_no_shard_is_finished_for_long_the_display_names_the_oldest_task(still, oldest, said, capsys):
    progress = AuditProgress(10, 2, oldest=oldest)
    progress._advanced -= still
    progress._printed -= 60
    progress.show()
    shown = capsys.readouterr().err
    assert (said in shown) if said else ("no shard" not in shown)
