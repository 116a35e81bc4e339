"""Processes that decode rows beside a GPU, so that the interpreter that launches its work does nothing else.

Each process answers one request at a time. A process that ends in the middle of one, killed or by a broken codec, makes
the request fail and not hang; another is started for the next. All of them end with this process, however it ends.
"""

import pickle
import queue
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from volgrowth.records import Failure
from volgrowth.sources import Row
from volgrowth.sources.pixels.described import Described, receive, send


class DecoderDiedError(RuntimeError):
    """A process ended while it decoded rows."""


class Decoders:
    """So many processes that decode rows, started when they are first needed.

    Args:
        count: the number of processes.
    """

    def __init__(self, count: int):
        self._free: queue.LifoQueue[subprocess.Popen[bytes] | None] = queue.LifoQueue()
        for _ in range(count):
            self._free.put(None)
        self._running: list[subprocess.Popen[bytes]] = []
        weakref.finalize(self, _end, self._running)

    def describe(
        self, rows: Sequence[Row], failures: Mapping[int, Failure], problems: Mapping[int, str], *more: Any
    ) -> list[Described]:
        """Do what `describe_rows` does, in one of the processes. Threads may call this at the same time.

        Raises:
            DecoderDiedError: the process ended.
        """
        ours = {row.row for row in rows}
        failed, wrong = ({row: each[row] for row in ours & each.keys()} for each in (failures, problems))
        process = self._free.get()
        try:
            process = process or self._start()
            answer = _ask(process, (rows, failed, wrong, *more))
            if answer is None:
                code, process = self._bury(process), None
                raise DecoderDiedError(
                    f"a process that decodes images ended with {code} at one of rows {rows[0].row} to {rows[-1].row}"
                )
        finally:
            self._free.put(process)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _start(self) -> "subprocess.Popen[bytes]":
        # workers may find their modules by other means than the environment
        code = f"import sys; sys.path[:] = {sys.path!r}; from volgrowth.sources.pixels.described import serve; serve()"
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._running.append(process)
        return process

    def _bury(self, process: "subprocess.Popen[bytes]") -> int:
        self._running.remove(process)
        _end([process])
        return process.wait()


def _ask(process: "subprocess.Popen[bytes]", request: object) -> Any:
    """Return the answer to a request; None if the process ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        send(process.stdin, pickle.dumps(request, pickle.HIGHEST_PROTOCOL))
    except BrokenPipeError:
        return None
    message = receive(process.stdout)
    return None if message is None else pickle.loads(message)


def _end(processes: "list[subprocess.Popen[bytes]]") -> None:
    for process in processes:
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream:
                with suppress(BrokenPipeError):
                    stream.close()
        process.wait()
