"""Writes log lines to stderr without waiting for its reader; lines beyond a full queue are dropped and counted.

A pipe that nobody reads, a stopped terminal or a stuck log collector blocks a write for ever. So a daemon thread
writes. It uses the file descriptor directly: a daemon thread that holds the lock of `sys.stderr` when Python ends would
crash the process.
"""

import mmap
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from trpo_tf.serving.errors import ServeError

QUEUE_BYTES = 2**20
"""Most bytes of lines in the queue."""

GATHER_SECONDS = 0.02
"""How long the thread collects lines to write them together: each time it runs it takes the GIL from the event loop."""

FLUSH_SECONDS = 1.0
"""How long the process waits at its end for its last lines to be written."""

PATIENCE_SECONDS = 0.1
"""How long a process without a writer thread waits until it can write."""


class Dropped:
    """Counts of dropped lines, one per process, in memory that forked processes share."""

    def __init__(self, processes: int) -> None:
        self._counts = memoryview(mmap.mmap(-1, 8 * processes)).cast("Q")

    def add(self, process: int, lines: int) -> None:
        """Add to the count of lines that a process has dropped."""
        self._counts[process] += lines

    def total(self) -> int:
        """Return how many lines all processes have dropped."""
        return sum(self._counts)


class _Entry(NamedTuple):
    """A line with its line end, or a notice that `missing` lines were dropped."""

    content: bytes
    missing: int = 0


class LineOutput:
    """Writer of lines to one file descriptor, in order. Where lines were dropped, a notice says how many.

    With `threaded` a thread writes lines from a queue; otherwise each is written or dropped at once.
    """

    def __init__(
        self, descriptor: int, notice: Callable[[int], bytes], count: Callable[[int], None], *, threaded: bool
    ) -> None:
        """Start the thread if `threaded`.

        `notice` returns the line for a number of dropped lines. `count` is called with the number of lines that are
        dropped.
        """
        self._descriptor, self._notice, self._count = descriptor, notice, count
        self._lock = threading.Lock()
        self._entries: deque[_Entry] = deque()
        self._queued = self._missing = 0
        self._is_torn = self._is_failing = self._is_writing = self._is_stuck = False
        self._has_lines, self._hurry = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="log", daemon=True) if threaded else None
        if self._thread is not None:
            try:
                self._thread.start()
            except RuntimeError as error:
                raise ServeError(f"{error}; raise the limit of processes (ulimit -u), or free memory") from None

    def put(self, line: bytes) -> None:
        """Write a line, which ends with a newline, or drop it if too much is waiting to be written."""
        with self._lock:
            if self._queued + len(line) > QUEUE_BYTES:
                self._count(1)
                self._missing += 1
                return
            if self._missing:
                self._append_notice()
            self._append(_Entry(line))
        if self._thread is None:
            self._write(self._take())
        elif not self._has_lines.is_set():
            self._has_lines.set()

    def flush(self, seconds: float = FLUSH_SECONDS) -> None:
        """Wait until all lines are written, but at most `seconds`.

        After such a timeout, further calls return at once until a write succeeds.
        """
        if self._thread is None or self._is_stuck:
            return
        deadline = time.monotonic() + seconds
        self._hurry.set()
        self._has_lines.set()
        while (self._entries or self._is_writing) and not self._is_stuck:
            time.sleep(0.002)
            self._is_stuck = time.monotonic() > deadline
        self._hurry.clear()

    def _work(self) -> None:
        while True:
            self._has_lines.wait()
            self._hurry.wait(GATHER_SECONDS)
            self._has_lines.clear()
            while entries := self._take():
                self._write(entries)
                self._is_writing = False

    def _append(self, entry: _Entry) -> None:
        self._entries.append(entry)
        self._queued += len(entry.content)

    def _append_notice(self) -> None:
        self._append(_Entry(self._notice(self._missing), self._missing))
        self._missing = 0

    def _take(self) -> list[_Entry]:
        """Remove whole lines from the queue, to be written at once.

        Together they are shorter than PIPE_BUF, so that lines of other processes can't come between; a longer line is
        taken alone.
        """
        with self._lock:
            if self._missing and not self._entries and not self._is_failing:
                self._append_notice()
            entries: list[_Entry] = []
            size = 0
            while self._entries and (not entries or size + len(self._entries[0].content) < select.PIPE_BUF):
                entries.append(self._entries.popleft())
                size += len(entries[-1].content)
            self._queued -= size
            self._is_writing = bool(entries)
            return entries

    def _write(self, entries: Sequence[_Entry]) -> None:
        content = b"".join(entry.content for entry in entries)
        if self._is_torn:
            content = b"\n" + content
        written = self._write_bytes(content)
        self._is_failing, self._is_stuck = written < len(content), False
        if written:
            self._is_torn = content[written - 1 : written] != b"\n"
        if self._is_failing:
            self._drop(entries, len(content) - written)

    def _write_bytes(self, content: bytes) -> int:
        """Write what is possible, and return the number of bytes written."""
        written = 0
        while written < len(content) and self._descriptor >= 0:
            try:
                if self._thread is None and not self._is_writable(PATIENCE_SECONDS):
                    break
                # Up to PIPE_BUF bytes are written without waiting if `poll` has reported room.
                written += os.write(self._descriptor, content[written : written + select.PIPE_BUF])
            except BlockingIOError:  # another process has made the descriptor non-blocking
                self._is_writable(1.0)
            except OSError:  # the disk is full, or the reader is gone
                break
        return written

    def _is_writable(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return bool(poll.poll(1000 * seconds))

    def _drop(self, entries: Sequence[_Entry], unwritten: int) -> None:
        """Count the lines that were not written completely, when the last `unwritten` bytes are missing."""
        with self._lock:
            for entry in reversed(entries):
                if unwritten <= 0:
                    break
                unwritten -= len(entry.content)
                self._missing += entry.missing or 1
                self._count(0 if entry.missing else 1)
