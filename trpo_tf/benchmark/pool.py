"""Run trainings in processes, a few at a time; they end when this process ends."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from trpo_tf.support.child_process import end_with_parent
from trpo_tf.support.graceful_stop import StopRequest

SECONDS_BETWEEN_LOOKS = 0.1
# Each process has one core; thread pools would only compete for the cores of the others.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Job(NamedTuple):
    """Arguments of a Python process, the folder of its files, and the file to which its output is appended."""

    folder: Path
    arguments: tuple[str, ...]
    log: Path


class Task(Protocol):
    """A job that was started."""

    def has_ended(self) -> bool:
        """Return whether the job has ended."""

    def failure(self) -> str | None:
        """Wait for the job's end, and return why it failed, None if it did not."""

    def stop(self) -> None:
        """Ask the job to stop; it saves what it has."""

    def kill(self) -> None:
        """End the job at once."""


Start = Callable[[Job], Task]
"""Starts a job."""

Ended = Callable[[Job, str | None], None]
"""Called with each job that has ended, and with the reason if it failed."""

Watch = Callable[[Sequence[Job]], None]
"""Called repeatedly with the running jobs."""


class Process:
    """A job's process on this machine; see `Task`."""

    def __init__(self, job: Job, variables: Mapping[str, str] | None = None, folder: str | None = None) -> None:
        """Start it in a folder, by default this process's, with further environment variables."""
        self._job = job
        with job.log.open("ab") as log:
            self._said_before = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, *job.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**os.environ, **_ONE_THREAD, **(variables or {})},
                # Ctrl-C in a terminal then reaches this process alone, which passes it on once.
                process_group=0,
                preexec_fn=_in_child,
            )

    def has_ended(self) -> bool:
        """Return whether the process has ended."""
        return self._process.poll() is not None

    def failure(self) -> str | None:
        """Wait for the end, and return why the job failed: its last line of output, and the file of all output."""
        status = self._process.wait()
        if status == 0:
            return None
        said = self._job.log.read_bytes()[self._said_before :].decode(errors="replace").strip().splitlines()
        if status < 0:
            reason = f"killed by {signal.Signals(-status).name}"
        else:
            reason = said[-1] if said else f"exit status {status}"
        return f"{reason} (log: {self._job.log})"

    def stop(self) -> None:
        """Send SIGINT."""
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()


def _in_child() -> None:
    end_with_parent()
    # What Ray starts has it blocked, and would never hear of a stop.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def run_jobs(jobs: Sequence[Job], workers: int, *, ended: Ended, watch: Watch, start: Start = Process) -> None:
    """Run every job, `workers` at a time, even if some fail.

    After SIGINT or SIGTERM no job is started. Running ones are asked to stop and awaited, and `KeyboardInterrupt` is
    raised. A second signal kills them.
    """
    waiting = deque(jobs)
    with StopRequest() as stop, _running() as running:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.popleft()
                running[job] = start(job)
            for job in [job for job, task in running.items() if task.has_ended()]:
                ended(job, running.pop(job).failure())
            watch(list(running))
            time.sleep(SECONDS_BETWEEN_LOOKS if running else 0)
            if stop.requested:
                raise KeyboardInterrupt


@contextlib.contextmanager
def _running() -> Iterator[dict[Job, Task]]:
    running: dict[Job, Task] = {}
    try:
        yield running
    finally:
        try:
            for task in running.values():
                task.stop()
            for task in running.values():
                task.failure()
        except KeyboardInterrupt:
            for task in running.values():
                task.kill()
                task.failure()
            raise
