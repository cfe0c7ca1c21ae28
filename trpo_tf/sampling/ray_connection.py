"""This process's connection to a Ray cluster, of which nothing is reported to Ray's makers."""

import contextlib
import logging
import os
import platform
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from trpo_tf.errors import UserError
from trpo_tf.sampling.ray_address import LOCAL, found, meant, unreachable
from trpo_tf.sampling.ray_processes import no_agents, no_autoscaler, no_dashboard, no_runtime_environment
from trpo_tf.serving import __version__
from trpo_tf.serving.errors import install

_SECONDS_TO_PLACE = 30.0
_ATTEMPTS = 3


def check_address(address: str) -> None:
    """Raise `UserError` if no cluster can be at this address, or Ray is not installed."""
    meant(address)
    if find_spec("ray") is None:
        raise UserError(f"Ray is not installed ({install('ray')})")


def check_version(version: str) -> None:
    """Raise `UserError` if this machine has another version of trpo-tf than the one that sends it work."""
    if version != __version__:
        raise UserError(
            f"the machine {platform.node()} has trpo-tf {__version__}, and the command is that of {version}"
        )


def connect(address: str, cores: int) -> bool:
    """Connect this process to Ray; return False if it was connected before. `ray.shutdown` disconnects it.

    For the address `local` Ray is started on this machine, with this number of `cores`; no other process can reach it.
    Raises `UserError` if there is no cluster at the address.
    """
    # Read when Ray starts, by it and by all that it starts.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    if ray.is_initialized():
        return False
    address, name = meant(address)
    if address == LOCAL:
        _start(cores)
        return True
    try:
        address = found(address)
        with _signal_handlers_kept():
            ray.init(address, logging_level="WARNING")
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise UserError(unreachable(address, name, error)) from error
    return True


def is_late(since: float) -> bool:
    """Return whether work that was submitted at `since`, by `time.monotonic`, should have started by now."""
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
        is_last = attempt == _ATTEMPTS - 1
        # Another release of Ray may lack a name that is replaced for fewer processes, so the last attempt goes without.
        few = contextlib.nullcontext() if is_last else _few_processes()
        try:
            with _signal_handlers_kept(), _own_token(), no_dashboard(), few:
                ray.init(LOCAL, logging_level="WARNING", **options)
        except Exception as error:
            # Ray raises this class itself if its processes take longer to start than the 15 seconds that it allows
            # them. Another attempt is faster, since the first one has read their files.
            if is_last:
                reason = last_line(error)
                raise UserError(
                    f"Ray does not start on this machine ({reason}); is it busy, or its disk full?"
                ) from error
            ray.shutdown()
        else:
            return


@contextlib.contextmanager
def _few_processes() -> Iterator[None]:
    with no_autoscaler(), no_agents(), no_runtime_environment():
        yield


@contextlib.contextmanager
def _own_token() -> Iterator[None]:
    """Have Ray that is started here ask for a token that nobody else knows, unless the user has given one.

    Ray would write it to the user's home folder. From then on `ray start` there would ask every machine for it.
    """
    if any(name.startswith("RAY_AUTH_") for name in os.environ):
        yield
        return
    logger = logging.getLogger("ray._private.authentication.authentication_token_setup")
    logger.setLevel("ERROR")  # it would warn that there is a token
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN"]


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
