"""How commands end: their exit codes, and the sentence when a signal interrupts one."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import typer
from typer.core import TyperGroup

from volgrowth.guard import INTERRUPTED, KEPT, STOPPED, tell_guard
from volgrowth.plain import print_plain


class Exit(IntEnum):
    """The exit codes of the commands."""

    DONE = 0
    MORE_THAN_ALLOWED = 1
    NOT_STARTED = STOPPED
    CANNOT_TELL = 2
    TOO_MANY_FAILED = 3
    INTERRUPTED = INTERRUPTED


class Commands(TyperGroup):
    """The commands, each of which ends with a sentence when a signal interrupts it."""

    def invoke(self, ctx: Any) -> Any:
        with interruptible(KEPT):
            return super().invoke(ctx)


@contextmanager
def interruptible(kept: str) -> Iterator[None]:
    """Have Ctrl-C, SIGTERM and SIGHUP end a command with a sentence that says what is kept, and exit code 130."""
    tell_guard(kept=kept)
    try:
        yield
    except KeyboardInterrupt:
        print_plain(f"interrupted: {kept}", error=True)
        raise typer.Exit(Exit.INTERRUPTED) from None
