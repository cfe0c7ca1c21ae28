"""This process's connection to a Ray cluster, of which nothing is reported to Ray's makers."""

import contextlib
import os
import platform
import signal
import socket
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from trpo_tf.errors import UserError
from trpo_tf.serving import __version__
from trpo_tf.serving.errors import install

LOCAL = "local"
"""The address that starts Ray on this machine."""
_SECONDS_TO_PLACE = 30.0
_SECONDS_TO_REACH = 10.0
_ATTEMPTS = 3


def check_address(address: str) -> None:
    """Raise `UserError` if no cluster can be at this address, or Ray is not installed."""
    if address.startswith("ray://"):
        raise UserError("ray can't be a ray:// address; submit the run as a job of the cluster: ray job submit")
    if find_spec("ray") is None:
        raise UserError(f"Ray is not installed ({install('ray')})")


def check_version(version: str) -> None:
    """Raise `UserError` if this machine has another version of trpo-tf than the one that sends it work."""
    if version != __version__:
        raise UserError(
            f"the machine {platform.node()} has trpo-tf {__version__}, and the command is that of {version}"
        )


def connect(address: str, cores: int) -> bool:
    """Connect this process to Ray unless it is connected, and return whether it was not; `ray.shutdown` ends it.

    Ray that is started here, alone on this machine, has so many `cores`, and nobody else reaches it. Raises `UserError`
    if there is no cluster at the address.
    """
    # Read when Ray starts, by it and by all that it starts.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    if ray.is_initialized():
        return False
    if address == LOCAL:
        _start(cores)
        return True
    if address != "auto":
        _check_reachable(address)
    try:
        with _signal_handlers_kept():
            ray.init(address, logging_level="WARNING")
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise UserError(_unreachable(address, error)) from error
    return True


def is_late(since: float) -> bool:
    """Return whether what Ray was given then, on `time.monotonic`'s clock, should have started by now."""
    return time.monotonic() - since > _SECONDS_TO_PLACE


def what_it_waits_for(what: str) -> str:
    """Return a warning that `what` has not started; it says how many cores the cluster has, and how many are idle."""
    import ray

    total, idle = (int(found.get("CPU", 0)) for found in (ray.cluster_resources(), ray.available_resources()))
    return (
        f"{what}: each needs a core, and the Ray cluster has {total}, of which {idle} are idle; the run waits for them"
    )


def last_line(error: Exception) -> str:
    """Return the last line of an error's message, which says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _start(cores: int) -> None:
    import ray

    # By default what the run waits for would give way to every other process of this machine, by 15 steps of `nice`,
    # and on a busy one be given up and started again each minute, before it has imported Ray.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_worker_register_timeout_seconds", "600")
    options: dict[str, Any] = {"num_cpus": cores, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    for attempt in range(_ATTEMPTS):
        try:
            with _signal_handlers_kept(), no_dashboard():
                ray.init(LOCAL, logging_level="WARNING", **options)
        except Exception as error:
            # Ray raises this class itself if its processes take longer to start than the 15 seconds that it allows
            # them. Another attempt is faster, since the first one has read their files.
            if attempt == _ATTEMPTS - 1:
                reason = last_line(error)
                raise UserError(
                    f"Ray does not start on this machine ({reason}); is it busy, or its disk full?"
                ) from error
            ray.shutdown()
        else:
            return


@contextlib.contextmanager
def no_dashboard() -> Iterator[None]:
    """Have Ray start no dashboard process; `include_dashboard` leaves one whose only work is to report.

    That one asks the metadata servers of clouds where it runs, also if reports are switched off.
    """
    from ray._private import services

    start = services.start_api_server
    services.start_api_server = lambda *_, **__: ("", None)
    try:
        yield
    finally:
        services.start_api_server = start


def _check_reachable(address: str) -> None:
    """Raise `UserError` if nothing listens there; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _SECONDS_TO_REACH).close()
    except (OSError, ValueError) as error:
        raise UserError(_unreachable(address, error)) from error


def _unreachable(address: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    if "ersion mismatch" in reason:
        return f"the Ray cluster at {address} has another version: {reason}"
    return (
        f"no Ray cluster at {address} ({reason}); give HOST:PORT of its head, or {LOCAL} to start Ray on this machine"
    )


@contextlib.contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Restore the handlers of SIGINT and SIGTERM, which Ray replaces by its own."""
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
