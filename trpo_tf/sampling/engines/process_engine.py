"""Rollout workers as processes on this machine; what they sample comes through shared memory."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait

from trpo_tf.sampling.engines.engine import WorkerLost
from trpo_tf.sampling.engines.shared_block import SharedBlock
from trpo_tf.sampling.engines.worker import Answer, Worker
from trpo_tf.support.child_process import end_with_parent

_SECONDS_TO_CLOSE = 3.0
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from trpo_tf.sampling.engines.process_engine import main; main(*map(int, sys.argv[2:]))"
)


class ProcessWorker:
    """A worker's process; see `RemoteWorker`."""

    def __init__(self, shards: range) -> None:
        self._block = SharedBlock.create()
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours.detach())
        with theirs:
            arguments = theirs.fileno(), self._block.descriptor, shards.start, shards.stop
            self.process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                pass_fds=arguments[:2],
                # Ctrl-C in a terminal then reaches the learner alone, which ends its iteration.
                process_group=0,
            )
        self.name = f"process {self.process.pid}"
        self._count, self._since = 0, time.monotonic()

    def send(self, message: bytes) -> None:
        """Send a pickled call."""
        self._since = time.monotonic()
        with contextlib.suppress(OSError):  # of a process that has ended, which the next look shows
            self.connection.send_bytes(message)

    def receive(self) -> Answer:
        """Return a copy of the answer."""
        try:
            answer: Answer = self._block.read(self.connection.recv())
        except (EOFError, OSError):
            raise WorkerLost(self._how_it_ended()) from None
        return answer

    def seconds_in_step(self) -> float:
        """Return for how long the call has been running, or its latest step."""
        if self._block.count != self._count:
            self._count, self._since = self._block.count, time.monotonic()
        return time.monotonic() - self._since

    def kill(self) -> None:
        """End the process at once, and those that its environments have started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()
        self._block.close()

    def _how_it_ended(self) -> str:
        """Wait for the end of a process that has closed its channel, and return what ended it."""
        try:
            status = self.process.wait(_SECONDS_TO_CLOSE)
        except subprocess.TimeoutExpired:
            return "closed its channel"
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"


class ProcessEngine:
    """Starts processes; see `Engine`."""

    def start(self, shards: range) -> ProcessWorker:
        """Start a process for these shards."""
        return ProcessWorker(shards)

    def message(self, call: bytes) -> bytes:
        """Return the pickled call as it is: a pipe takes bytes."""
        return call

    def wait(self, workers: Sequence[ProcessWorker], seconds: float) -> list[ProcessWorker]:
        """Return the workers whose channel has something to read, or is closed."""
        ready = wait([worker.connection for worker in workers], seconds)
        return [worker for worker in workers if worker.connection in ready]

    def close(self, workers: Sequence[ProcessWorker]) -> None:
        """End the processes; those that do not close their environments in time are killed."""
        for worker in workers:
            worker.connection.close()
        deadline = time.monotonic() + _SECONDS_TO_CLOSE
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            worker.kill()


def main(channel: int, descriptor: int, first: int, end: int) -> None:
    """Answer calls until the learner closes the channel or ends; the first two are inherited file descriptors."""
    end_with_parent()
    connection, block = Connection(channel), SharedBlock(descriptor)
    worker = Worker(range(first, end), block.count_up)
    try:
        while True:
            connection.send(block.write(worker.answer(connection.recv_bytes())))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the learner closed the channel, or has ended
    finally:
        worker.close()
