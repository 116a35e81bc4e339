"""The lines of the progress display where no terminal is."""

import re

import pytest

from volgrowth.audit.engine import progress as module
from volgrowth.audit.engine.progress import AuditProgress


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def strftime(self, form: str) -> str:
        return "06:58:01"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def made(clock: Clock, **settings: int) -> AuditProgress:
    return AuditProgress(1000, 10, _began=clock.now, _printed=clock.now, _advanced=clock.now, workers=2, **settings)  # type: ignore[arg-type]


def left(progress: AuditProgress) -> str:
    found = re.search(r"([\d:]+|moments) left", progress._line())
    return found[1] if found else ""


def test_rows_are_counted_within_a_shard(clock: Clock) -> None:
    progress = made(clock, done_rows=100)
    assert progress._line() == "100 of 1,000 images, starting, 0 failed, 2 workers"
    clock.now += 10
    progress.move(50)
    assert progress._line() == "150 of 1,000 images, 5 images/s, 2:50 left, 0 failed, 2 workers"
    progress.advance(100, 3)
    progress.move(0)
    assert progress._line().startswith("200 of 1,000 images, ")
    assert "3 failed" in progress._line()


def test_a_shard_that_is_tried_again_takes_nothing_back(clock: Clock) -> None:
    progress = made(clock)
    clock.now += 10
    progress.move(80)
    progress.move(0)
    assert progress._line().startswith("80 of 1,000 images")


def test_the_time_left_falls_while_nothing_is_finished(clock: Clock) -> None:
    progress = made(clock)
    clock.now += 10
    progress.advance(100, 0)
    seen = []
    for _ in range(5):
        seen.append(left(progress))
        clock.now += 20
    assert seen == ["1:30", "1:10", "0:50", "0:30", "0:10"]
    assert left(progress) == "moments"


def test_the_speed_is_that_of_the_last_minutes(clock: Clock) -> None:
    progress = made(clock)
    clock.now += 1000
    progress.advance(100, 0)  # a slow start
    for _ in range(20):
        clock.now += 10
        progress.advance(10, 0)
    assert ", 1 images/s, " in progress._line()


def test_lines_have_a_time_and_none_is_repeated(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = made(clock)
    with progress:
        for seconds in (6, 1, 6, 6):
            clock.now += seconds
            progress.show()
        clock.now += 6
        progress.advance(1000, 0)
        progress.show()
        clock.now += 40
        progress.show()
        clock.now += 40
        progress.show()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "06:58:01 0 of 1,000 images, starting, 0 failed, 2 workers",
        "06:58:01 1,000 of 1,000 images, 40 images/s, 0 failed, 2 workers",
    ]


def test_after_a_minute_lines_are_rarer(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = made(clock)
    for second in range(1, 181):
        clock.now += 1
        progress.move(second)
        progress.show()
    assert len(capsys.readouterr().err.splitlines()) == 11 + 4
