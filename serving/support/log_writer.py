"""Writes log lines to stderr without waiting for its reader: what finds no room is dropped and counted.

A pipe that nobody reads, a stopped terminal or a stuck log collector blocks a write for ever. So a daemon thread
writes, straight to the descriptor: one that held the lock of `sys.stderr` when Python ends would crash the process.
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
"""Most bytes that wait for the thread."""

GATHER_SECONDS = 0.02
"""How long the thread waits for more lines, to write them together: it takes the GIL from the event loop each time."""

FLUSH_SECONDS = 1.0
"""How long the end of the process waits for its last lines to be written."""

PATIENCE_SECONDS = 0.1
"""How long a process without a thread waits for its reader."""


class Dropped:
    """Lines that each process has dropped, in memory that forked processes share."""

    def __init__(self, processes: int) -> None:
        self._counts = memoryview(mmap.mmap(-1, 8 * processes)).cast("Q")

    def add(self, process: int, lines: int) -> None:
        """Count lines that this process has dropped."""
        self._counts[process] += lines

    def total(self) -> int:
        """How many lines all processes have dropped."""
        return sum(self._counts)


class _Entry(NamedTuple):
    """A line with its end, or a notice of lines that are `missing` before it."""

    content: bytes
    missing: int = 0


class LineOutput:
    """Lines for one descriptor, in order. Where some are missing, a line says how many.

    With `threaded` they wait for a thread, else each is written or dropped at once.
    """

    def __init__(
        self, descriptor: int, notice: Callable[[int], bytes], count: Callable[[int], None], *, threaded: bool
    ) -> None:
        """`notice` makes the line that says how many are missing; `count` is told of each that is dropped."""
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
        """Write a line, which has its end, or drop it."""
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
        """Wait until all is written, or this time is over; not again while nothing can be written."""
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
        """Whole lines to write at once, which other processes' lines don't come between if they fit a pipe's buffer."""
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
        """How many bytes could be written."""
        written = 0
        while written < len(content) and self._descriptor >= 0:
            try:
                if self._thread is None and not self._is_writable(PATIENCE_SECONDS):
                    break
                # What fits a pipe's buffer is written without waiting, if there was room at all.
                written += os.write(self._descriptor, content[written : written + select.PIPE_BUF])
            except BlockingIOError:  # another process has made the descriptor so
                self._is_writable(1.0)
            except OSError:  # a full disk, a reader that has gone
                break
        return written

    def _is_writable(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return bool(poll.poll(1000 * seconds))

    def _drop(self, entries: Sequence[_Entry], unwritten: int) -> None:
        """Count what is not written whole: the last entries, which have at least this many bytes."""
        with self._lock:
            for entry in reversed(entries):
                if unwritten <= 0:
                    break
                unwritten -= len(entry.content)
                self._missing += entry.missing or 1
                self._count(0 if entry.missing else 1)
