"""Runs trainings as tasks of a Ray cluster: each is a process on one core of any machine that sees its folder."""

import os
import platform
import sys
import time
import uuid
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from trpo_tf.benchmark.pool import SECONDS_BETWEEN_LOOKS, Job, Process
from trpo_tf.errors import UserError
from trpo_tf.sampling.ray_connection import check_version, connect, is_late, last_line, what_it_waits_for
from trpo_tf.serving import __version__

_MOST_LOSSES = 10
"""How often a job may lose its machine and run again."""


class Origin(NamedTuple):
    """Properties of the process that submits a job, which the job adopts.

    Attributes:
        token: text that is in the job's log, if the log is the one that the submitting process has written.
        version: version of trpo-tf.
        folder: working folder; a machine that lacks it uses the one that Ray chose.
        path: where the submitting process finds modules, beside its own installation.
    """

    token: str
    version: str
    folder: str
    path: tuple[str, ...]


class RayTask:
    """A job as a task of the cluster; see `Task`."""

    def __init__(self, job: Job, run: Any, waits: Callable[[], None]) -> None:
        """Submit it with the remote function `run`; `waits` is called while it has not started for long."""
        token = uuid.uuid4().hex
        with job.log.open("a") as log:
            log.write(f"submitted to Ray as {token}\n")
            self._submitted_bytes = log.tell()
        self._job, self._waits, self._since = job, waits, time.monotonic()
        self._task = run.remote(job, Origin(token, __version__, os.getcwd(), _own_path()))

    def has_ended(self) -> bool:
        """Return whether the task has ended."""
        import ray

        ended = bool(ray.wait([self._task], timeout=0)[0])
        if not ended and is_late(self._since) and self._job.log.stat().st_size == self._submitted_bytes:
            self._waits()
        return ended

    def failure(self) -> str | None:
        """Wait for the end, and return why the job failed."""
        import ray

        try:
            failure: str | None = ray.get(self._task)
        except ray.exceptions.TaskCancelledError:
            failure = "stopped"
        except ray.exceptions.RayError as error:
            failure = f"{last_line(error)} (log: {self._job.log})"
        # Reading a shared folder brings what an NFS client knows of its files up to date.
        with suppress(OSError):
            os.listdir(self._job.folder)
        return failure

    def stop(self) -> None:
        """Have the job's process receive SIGINT."""
        import ray

        ray.cancel(self._task)

    def kill(self) -> None:
        """End the task, and with it its process."""
        import ray

        ray.cancel(self._task, force=True)


class RayPool:
    """Starts jobs on a cluster; leaving the context disconnects from it."""

    def __init__(self, address: str, workers: int) -> None:
        """Connect. Raises `UserError` if there is no cluster at the address."""
        self._is_ours = connect(address, workers)
        import ray

        self._run = ray.remote(num_cpus=1, max_retries=_MOST_LOSSES)(run_here)
        self._warned = False

    def start(self, job: Job) -> RayTask:
        """Submit a job; a warning follows if it does not start."""
        return RayTask(job, self._run, self._warn)

    def _warn(self) -> None:
        """Warn once: more trainings wait for the same reason."""
        if not self._warned:
            self._warned = True
            warnings.warn(what_it_waits_for("trainings have not started"), stacklevel=2)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        if self._is_ours:
            ray.shutdown()


def _own_path() -> tuple[str, ...]:
    """Return where this process finds modules, but for its installation, which may be reached through links."""
    installed = [os.path.realpath(prefix) for prefix in (sys.prefix, sys.base_prefix)]

    def is_own(folder: str) -> bool:
        place = Path(os.path.realpath(folder))
        return not any(place.is_relative_to(prefix) for prefix in installed)

    return tuple(os.path.abspath(folder) for folder in sys.path if folder and is_own(folder))


def run_here(job: Job, origin: Origin) -> str | None:
    """Run a job on the machine where Ray has placed it, and return why it failed, None if it did not."""
    here = platform.node()
    if not (job.log.is_file() and origin.token in job.log.read_text(errors="replace")):
        return (
            f"the machine {here} does not see {job.folder} as the command does; give --out on a disk that all machines "
            "of the cluster share"
        )
    try:
        check_version(origin.version)
    except UserError as error:
        return str(error)
    with job.log.open("a") as log:
        log.write(f"runs on {here}\n")
    folder = origin.folder if os.path.isdir(origin.folder) else os.getcwd()
    path = os.pathsep.join(filter(None, (*origin.path, folder, os.environ.get("PYTHONPATH"))))
    process = Process(job, {"PYTHONPATH": path}, folder)
    try:
        while not process.has_ended():
            time.sleep(SECONDS_BETWEEN_LOOKS)  # Ray's interrupt of a task does not end a wait for a process
    except KeyboardInterrupt:
        process.stop()
        process.failure()
        raise
    return process.failure()
