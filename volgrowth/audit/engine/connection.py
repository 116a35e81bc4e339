"""The connection to Ray: started or joined for a while, and watched, since the head of a cluster may go away."""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
import ray.util.client
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # its stub leaves it out
from ray.exceptions import RpcError

from volgrowth.errors import EngineError, kind_and_line
from volgrowth.guard import tell_guard
from volgrowth.signals import check_interrupted, heed_no_signal_while_forking

# the variable of Ray's own patience with a head, and its default, in seconds; half of it is waited here
RAYS_PATIENCE, RAYS_SECONDS = "RAY_gcs_rpc_server_reconnect_timeout_s", "60"

_EXPECTED = "expected the address of a running cluster, or none to start one here"
RESUMES = "what is published stays, and the same command resumes on a cluster that answers"


@contextmanager
def ray_running(address: str | None, lost: Callable[[str], object]) -> Iterator[None]:
    """Connect to Ray: the caller's, the cluster at `address` or RAY_ADDRESS, or one that is started for the while.

    Args:
        address: the cluster.
        lost: called with a sentence if the connection is not made or closed, as where the head was stopped: Ray then
            waits for ever. It has to end the process.

    Raises:
        EngineError: the cluster cannot be reached, or has another version of Ray.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    local = {"include_dashboard": False} if address == "local" else {}
    if address != "local":
        _check_reachable(address)
    tell_guard(ray=True)
    # one that is started here is not given up: a busy machine may take long
    silent = f"Ray cannot be reached at {address} (no answer for {2 * _patience():g} seconds): {_EXPECTED}"
    with heed_no_signal_while_forking():  # as Ray does for each process that it starts
        try:
            with _handler_kept(), _given_up(2 * _patience(), lost, silent) if address != "local" else nullcontext():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except Exception as error:  # each of ray's transports raises its own kinds
            if isinstance(error, OSError) and error.filename:
                raise _no_folder(error) from None
            said = " ".join(str(error).split()) if "ersion mismatch" in str(error) else kind_and_line(error)
            raise EngineError(
                f"Ray cannot be reached at {address} ({said}): expected the address of a running "
                f"cluster with this version of Ray, {ray.__version__}, or none to start one here"
            ) from None
        try:
            yield
        finally:
            said = f"the head of the Ray cluster does not answer while the connection to it is closed: {RESUMES}"
            with _handler_kept(), _given_up(_patience(), lost, said):
                ray.shutdown()
            tell_guard(ray=False)


@contextmanager
def _given_up(seconds: float, lost: Callable[[str], object], said: str) -> Iterator[None]:
    """Call `lost` with a sentence if the block, which may wait for ever, takes longer; it ends the process."""
    stuck = threading.Timer(seconds, lost, [said])
    stuck.daemon = True
    stuck.start()
    try:
        yield
    finally:
        stuck.cancel()


@contextmanager
def _handler_kept() -> Iterator[None]:
    """Have SIGTERM do afterwards what it did before, and heed one that Ray passed over meanwhile.

    Ray takes SIGTERM over when it starts, to end this process with a dump of its stack, and resets it when it ends.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:  # what Ray has SIGTERM raise while it starts
        raise KeyboardInterrupt from None
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    check_interrupted()


@contextmanager
def head_watched(lost: Callable[[str], object]) -> Iterator[None]:
    """Watch from a thread whether the head of the cluster answers, and call `lost` with a sentence when it does not.

    Ray ends this process with its own exit code when its head has been gone for a minute, and until then no call of
    Ray's returns. So `lost` has to end the process itself.
    """
    if ray.util.client.ray.is_connected():  # the process of the client's server is the one that Ray ends
        yield
        return
    address, over = ray.get_runtime_context().gcs_address, threading.Event()
    head = ray._private.worker.global_worker.gcs_client
    patience = _patience()

    def watch() -> None:
        missing = None
        while not over.wait(1.0):
            if _answers(head, 1.0):
                missing = None
                continue
            missing = missing or time.monotonic()
            if time.monotonic() - missing > patience and not over.is_set():
                lost(f"the head of the Ray cluster at {address} has not answered for {patience:g} seconds: {RESUMES}")

    watching = threading.Thread(target=watch, name="volgrowth-head", daemon=True)
    try:
        watching.start()
        yield
    finally:
        over.set()
        if watching.is_alive():  # not if a signal came while it began
            watching.join()  # Ray must not be closed while a question is on its way


def _patience() -> float:
    """Return for how many seconds a head may be silent: half as long as Ray itself waits."""
    return 0.5 * float(os.environ.get(RAYS_PATIENCE, RAYS_SECONDS))


def _answers(head: Any, seconds: float) -> bool:
    """Return whether the head answers a question; one that is stopped takes connections and answers nothing."""
    try:
        head.check_alive([], timeout=seconds)
    except RpcError:
        return False
    return True


def _reachable(address: str, seconds: float) -> OSError | None:
    """Return None if HOST:PORT takes a connection, or why it does not."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except OSError as error:
        return error
    return None


def _no_folder(error: OSError) -> EngineError:
    """Return the error that Ray could not write to a folder of this machine, which is not about its address."""
    home = os.path.expanduser("~")
    below = str(error.filename).startswith(home)
    fix = f"HOME is {home}, and has to be" if below else "RAY_TMPDIR, or TMPDIR, has to be"
    return EngineError(
        f"Ray cannot be started, since {error.filename} cannot be written ({error.strerror}): {fix} a folder that you "
        f"may write to"
    )


def _check_reachable(address: str) -> None:
    """Check that a head answers at HOST:PORT, since Ray itself tries for minutes.

    "auto" and ray:// are not checked here: the time that it takes to connect is bounded.
    """
    _, colon, port = address.rpartition(":")
    if "://" in address or not colon or not port.isdigit():
        return
    error: Exception | None = _reachable(address, 10.0)
    if error is None:
        try:
            GcsClient(address=address)  # asks the head which cluster it is, and waits for half a minute
        except RpcError as silent:
            error = silent
    if error:
        raise EngineError(f"Ray cannot be reached at {address} ({kind_and_line(error)}): {_EXPECTED}")
