"""The command line in processes of its own, which need not import large packages first: see fork_server.py."""

import atexit
import contextlib
import errno
import functools
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.support.paths import ROOT

TRAINING = (
    *("tensorflow", "tensorflow_probability", "keras", "tf_keras", "tf2onnx.convert"),
    *("gymnasium", "envpool", "rich.console", "tyro"),
)
SERVING = ("numpy", "asyncio", "ssl", "http.client", "uvloop", "httptools", "orjson")
"""What a command finds imported; ONNX Runtime does not survive a fork."""


class Command:
    """A process that runs `trpo-tf`, with what tests use of `subprocess.Popen`."""

    def __init__(self, args: list[str], pid: int, status: int, stdout: IO[str], stderr: IO[str]) -> None:
        self.args, self.pid, self.stdout, self.stderr, self._status = args, pid, stdout, stderr, status
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        if self._wait(timeout) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = int(os.read(self._status, 16))
            os.close(self._status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read what it wrote and wait for its end."""
        read = ["", ""]

        def drain(place: int, stream: IO[str]) -> None:
            with stream:
                read[place] = stream.read()

        threads = [threading.Thread(target=drain, args=each) for each in enumerate((self.stdout, self.stderr))]
        for thread in threads:
            thread.start()
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        finally:
            for thread in threads:
                thread.join()
        return read[0], read[1]


def start(
    folder: Path,
    *arguments: object,
    code: str | None = None,
    paths: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    imported: tuple[str, ...] = TRAINING,
) -> Command:
    """Start `trpo-tf ARGUMENTS` in a folder, or Python `code` with these arguments.

    What it imports is found in `paths` and the checkout. By default it has this process's environment variables.
    """
    variables = dict(os.environ if environment is None else environment)
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, map(str, [*paths, ROOT, variables.get("PYTHONPATH", "")])))
    request: dict[str, Any] = {
        "code": code,
        "arguments": list(map(str, arguments)),
        "folder": str(folder),
        "environment": variables,
        "largest_file": resource.getrlimit(resource.RLIMIT_FSIZE),
    }
    pipes = [os.pipe() for _ in range(3)]
    theirs = [os.open(os.devnull, os.O_RDONLY), *(write for _, write in pipes)]
    server = _server(imported)
    socket.send_fds(server, [json.dumps(request).encode()], theirs)
    for descriptor in theirs:
        os.close(descriptor)
    stdout, stderr = (os.fdopen(read) for read, _ in pipes[:2])
    return Command(request["arguments"], int(server.recv(16)), pipes[2][0], stdout, stderr)


def run(folder: Path, *arguments: object, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `trpo-tf ARGUMENTS` to its end; `options` are those of `start`."""
    process = start(folder, *arguments, **options)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess(list(map(str, arguments)), process.wait(), out, err)


def wait_until(process: Command, reached: Callable[[], bool], timeout: float = 300) -> None:
    """Wait until `reached()` while the process runs."""
    deadline = time.monotonic() + timeout
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@functools.cache
def _server(imported: tuple[str, ...]) -> socket.socket:
    """Connect to the server with these imports, which the processes of one test run share; start it if need be."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    name = f"\0trpo-tf-tests/{run}/{zlib.crc32(repr(imported).encode())}"  # of no file: free again as the server ends
    with socket.socket(socket.AF_UNIX) as listener, contextlib.suppress(OSError):  # which another process has bound
        listener.bind(name)
        listener.listen()
        _start_server(listener, imported)
    server = socket.socket(socket.AF_UNIX)
    deadline = time.monotonic() + 10
    while server.connect_ex(name) == errno.ECONNREFUSED:  # bound, and not listening yet
        assert time.monotonic() < deadline
        time.sleep(0.001)
    atexit.register(server.close)
    return server


def _start_server(listener: socket.socket, imported: tuple[str, ...]) -> None:
    command = [sys.executable, str(Path(__file__).with_name("fork_server.py")), str(listener.fileno()), *imported]
    # What a test adds to PYTHONPATH is for its own commands.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    listener.set_inheritable(True)
    nowhere = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_RDWR, 0) for stream in (0, 1)]
    # It ends by itself after the last process that uses it, so nobody waits for it.
    os.posix_spawn(sys.executable, command, variables, file_actions=nowhere)
