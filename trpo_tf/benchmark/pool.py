"""Runs commands in processes, a few at a time, which stop with this one."""

import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from trpo_tf.support.child_process import end_with_parent
from trpo_tf.support.graceful_stop import StopRequest

_SECONDS_BETWEEN_LOOKS = 0.1
# Each process has one core; thread pools would only compete for the cores of the others.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Job(NamedTuple):
    """A command, its folder, and the file to which its output is appended."""

    folder: Path
    command: tuple[str, ...]
    log: Path


Ended = Callable[[Job, str | None], None]
"""Called with each job that has ended, and with the reason if it failed."""

Watch = Callable[[Sequence[Job]], None]
"""Called repeatedly with the running jobs."""


def run_jobs(jobs: Sequence[Job], workers: int, *, ended: Ended, watch: Watch) -> None:
    """Run every job, `workers` at a time, even if some fail.

    After SIGINT or SIGTERM no job is started. Running ones are asked to stop and awaited, and `KeyboardInterrupt` is
    raised. A second signal kills them.
    """
    waiting = deque(jobs)
    with StopRequest() as stop, _running() as running:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.popleft()
                running[job] = _start(job)
            for job in [job for job, process in running.items() if process.poll() is not None]:
                ended(job, failure(job, running.pop(job).returncode))
            watch(list(running))
            time.sleep(_SECONDS_BETWEEN_LOOKS if running else 0)
            if stop.requested:
                raise KeyboardInterrupt


def failure(job: Job, status: int) -> str | None:
    """Return why a job with exit status `status` failed; None if it did not."""
    if status == 0:
        return None
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    said = job.log.read_text(errors="replace").strip().splitlines()
    return said[-1] if said else f"exit status {status}"


def _start(job: Job) -> subprocess.Popen[bytes]:
    with job.log.open("ab") as log:
        return subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **_ONE_THREAD},
            # Ctrl-C in a terminal then reaches this process alone, which passes it on once.
            process_group=0,
            preexec_fn=end_with_parent,
        )


@contextlib.contextmanager
def _running() -> Iterator[dict[Job, subprocess.Popen[bytes]]]:
    running: dict[Job, subprocess.Popen[bytes]] = {}
    try:
        yield running
    finally:
        try:
            for process in running.values():
                process.send_signal(signal.SIGINT)
            for process in running.values():
                process.wait()
        except KeyboardInterrupt:
            for process in running.values():
                process.kill()
                process.wait()
            raise
