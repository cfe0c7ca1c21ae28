"""Runs the server, in a container or as a process of this machine's, and reads its stderr, but not always."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.container.chaos.faults.processes import anonymous_bytes, children
from tests.container.engine import LOCKED_DOWN, ROOT, CheckError, Engine, execute, find_engine

TAG = "trpo-tf-serving-grpc"
CORE = min(os.sched_getaffinity(0))
FILES = 1024
"""How many files each process of the server may have open."""

OPTIONS = (
    *("--host", "0.0.0.0", "--workers", "2", "--access-log", "--poll", "0.3", "--versions", "2", "--canary", "0.2"),
    # Of each worker, and the container's memory is for both.
    *("--max-connections", "128", "--max-buffered", str(16 * 2**20)),
)
TLS_MEMORY = "384m"
"""Of the container over TLS, which takes more for each connection."""

STALL_EVERY, STALL_SECONDS = 15.0, 6.0
END_SECONDS = 30.0


@dataclass
class Running:
    """A server.

    Attributes:
        pid: its first process, as this machine knows it.
        cgroup: folder of the container's control group for memory, None without a container.
        lines: the last on stderr, but for requests'.
        peak: largest memory of the control group in bytes; `oom_kills` the processes that were killed for it.
    """

    process: subprocess.Popen[bytes]
    pid: int
    cgroup: Path | None
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=400))
    bytes_logged: int = 0
    peak: int | None = None
    oom_kills: int | None = None

    def memory(self) -> int:
        """Bytes of all its processes that are no file's."""
        return sum(map(anonymous_bytes, (self.pid, *children(self.pid))))

    def look(self) -> None:
        """See the control group's figures, as long as it is there."""
        peak = self._read("memory.peak", "memory.max_usage_in_bytes")
        kills = self._read("memory.events", "memory.oom_control")
        self.peak = self.peak if peak is None else peak
        self.oom_kills = self.oom_kills if kills is None else kills

    def _read(self, *names: str) -> int | None:
        """A number of the control group's: version 2 has it in the first file, version 1 in the second."""
        for path in (self.cgroup / name for name in names if self.cgroup):
            with suppress(OSError):
                found = re.search(r"oom_kill (\d+)|^(\d+)$", path.read_text())
                return int(found[1] or found[2]) if found else None
        return None

    def end(self) -> int | None:
        """Send SIGTERM; the exit status, or None if it doesn't end in time."""
        os.kill(self.pid, signal.SIGTERM)
        try:
            return self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def read_stderr(self) -> None:
        """Read to the end, with a pause now and then in which nobody reads."""
        assert self.process.stderr is not None
        descriptor, rest = self.process.stderr.fileno(), b""
        next_stall = time.monotonic() + STALL_EVERY
        while chunk := os.read(descriptor, 2**16):
            self.bytes_logged += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            self.lines.extend(
                line.decode(errors="replace") for line in lines if not line.startswith((b"request ", b"call "))
            )
            if time.monotonic() > next_stall:
                time.sleep(STALL_SECONDS)
                next_stall = time.monotonic() + STALL_EVERY


@contextmanager
def in_container(
    models: Path, secrets: Path, port: int, grpc_port: int, *options: str, memory: str
) -> Iterator[Running]:
    """The image, locked down, on a core of its own."""
    engine = find_engine()
    execute(*engine.build, TAG, str(ROOT), "--build-arg", "EXTRA=grpc")
    name = f"trpo-tf-chaos-{os.getpid()}"
    limits = (
        *LOCKED_DOWN,
        f"--memory={memory}",
        f"--memory-swap={memory}",
        f"--cpuset-cpus={CORE}",
        f"--ulimit=nofile={FILES}:{FILES}",
    )
    attached = ("--attach=stderr", "--log-driver=none", f"--name={name}", f"--env=PORT={port}")
    mounts = (f"--volume={models}:/models:ro", f"--volume={secrets}:/secrets:ro")
    command = [*engine.run, *attached, *limits, *mounts, TAG, "--grpc-port", str(grpc_port), *OPTIONS, *options]
    # In a folder that is removed: what watches a container may leave a file there when the kernel kills a process.
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, cwd=models.parent) as process:
        try:
            pid = _first_process(engine, name, process)
            yield _watched(Running(process, pid, _cgroup(pid)))
        finally:
            engine("rm", "--force", "--volumes", name, check=False)


def _first_process(engine: Engine, name: str, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = engine("inspect", "--format={{.State.Pid}}", name, check=False).stdout.strip()
        if found.isdigit() and found != "0":
            return int(found)
        time.sleep(0.1)
    raise CheckError(f"the container does not start: {process.stderr.read1().decode()}")  # type: ignore[union-attr]


def _cgroup(pid: int) -> Path | None:
    """The folder of a process's control group for memory."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for folder in (Path(f"/sys/fs/cgroup{path}"), Path(f"/sys/fs/cgroup/memory{path}")):
            if controllers in ("", "memory") and any(folder.glob("memory.*")):
                return folder
    return None


@contextmanager
def as_process(models: Path, secrets: Path, port: int, grpc_port: int, *options: str) -> Iterator[Running]:
    """A process of this machine's, on a core of its own."""
    ports = ("--port", str(port), "--grpc-port", str(grpc_port))
    command = [
        "taskset",
        "--cpu-list",
        str(CORE),
        sys.executable,
        "-m",
        "trpo_tf",
        "serve",
        str(models),
        *ports,
        *OPTIONS,
        *options,
    ]
    environment = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT)), "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        try:
            yield _watched(Running(process, process.pid, None))
        finally:
            for pid in children(process.pid):
                os.kill(pid, signal.SIGKILL)
            process.kill()


def _watched(running: Running) -> Running:
    threading.Thread(target=running.read_stderr, daemon=True).start()
    return running
