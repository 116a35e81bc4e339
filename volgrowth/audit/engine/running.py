"""Running tasks on the engine of the settings: Ray actors on a cluster, or one worker in this process.

Both engines take tasks from the same ledger, call the same methods and leave the same bytes.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

from volgrowth.audit.engine.ledger import Ledger, Task
from volgrowth.audit.engine.progress import AuditProgress
from volgrowth.audit.engine.session import Session
from volgrowth.errors import EngineError


def run_tasks(
    session: Session,
    worker: Callable[..., Any],
    tasks: Iterable[Task],
    count: int,
    progress: AuditProgress,
    gpus: bool = True,
) -> None:
    """Have every task done by workers.

    Args:
        session: the driver session that the workers belong to.
        worker: the class of the workers, or what makes one by `worker(config, manifest, device)`.
        tasks: the tasks, taken one by one as workers become free.
        count: the number of tasks: no more workers than this are started.
        progress: the display.
        gpus: whether the workers use GPUs, where there are any.

    Raises:
        EngineError: the engine or its workers cannot start, or a task failed for good; what was published stays.
        VolgrowthError: what a worker's loaders, readers or writers raised.
    """
    if count == 0:
        return
    crew: Any
    # imported here, since an audit without Ray must not wait for its import
    if session.config.engine == "local":
        from volgrowth.audit.engine.local import LocalCrew

        crew = LocalCrew(session, worker, progress)
    else:
        _connect(session)
        from volgrowth.audit.engine.driver import RayCrew

        crew = RayCrew(session, worker, count, progress, gpus)
    began = time.monotonic()
    try:
        with progress:
            crew.work(Ledger(tasks))
    finally:
        session.run.working_seconds += time.monotonic() - began


def uses_gpus(session: Session) -> bool:
    """Say whether the session's workers will use GPUs; where Ray runs them, the session is connected to it."""
    if session.config.engine == "local":
        from volgrowth.audit.engine.local import device_here

        return device_here(session.config.gpus_per_worker, session.config.dtype) == "cuda"
    _connect(session)
    from volgrowth.audit.engine.driver import gpu_share

    return gpu_share(session) > 0


def workers_here(session: Session) -> int:
    """Return how many workers the session will have: as many as the settings say, or as there is room for now."""
    if session.config.engine == "local":
        return 1
    _connect(session)
    from volgrowth.audit.engine.driver import gpu_share, room

    return session.config.workers or room(gpu_share(session))


def _connect(session: Session) -> None:
    """Connect a session to Ray, or start one for it; an EngineError if Ray is not installed."""
    try:
        from volgrowth.audit.engine.connection import head_watched, ray_running
    except ImportError as error:
        raise EngineError(
            f"Ray cannot be imported ({error}): pip install 'ray>=2.50', or work without it (--engine local)"
        ) from None

    if not session.connected:
        session.resources.enter_context(ray_running(session.config.ray_address, session.abandon))
        session.resources.enter_context(head_watched(session.abandon))
        session.connected = True
