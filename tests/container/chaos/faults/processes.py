"""Kills and stops worker processes, and knows whose connections each one had."""

import os
import re
import signal
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

REPLACED_SECONDS = 10.0
"""Within which a worker that hangs must be replaced."""

_SOCKET = re.compile(r"socket:\[(\d+)\]")


@dataclass
class Blow:
    """What was done to a worker. `connections` are clients' ports and the server's addresses; `seconds` until it was
    replaced, or None if it was not.
    """

    kind: str
    when: float
    connections: frozenset[int | str]
    seconds: float | None = None


def children(pid: int) -> list[int]:
    """Process ids of a process's children, none if it has ended."""
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def anonymous_bytes(pid: int) -> int:
    """Resident memory of a process that is no file's."""
    with suppress(OSError):
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and its children, also those that have ended."""
    total = 0.0
    for process, fields in ((pid, slice(11, 15)), *((child, slice(11, 13)) for child in children(pid))):
        with suppress(OSError):
            after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, after_name[fields]))
    return total / os.sysconf("SC_CLK_TCK")


def connections(pid: int) -> frozenset[int | str]:
    """Of a process's TCP connections the clients' ports and the server's addresses."""
    inodes = set()
    known: set[int | str] = set()
    with suppress(OSError):  # it has just ended
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if found := _SOCKET.match(os.readlink(entry.path)):
                    inodes.add(found[1])
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                _, local, remote, state, *_, inode = line.split()[:10]
                if inode in inodes and state != "0A":  # 0A listens
                    known |= {int(remote.partition(":")[2], 16), _address(local.partition(":")[0])}
    return frozenset(known)


def _address(hexadecimal: str) -> str:
    """An IPv4 address as the kernel shows it, alone or at the end of an IPv6 one."""
    return socket.inet_ntoa(struct.pack("<I", int(hexadecimal[-8:], 16)))


@dataclass
class Attacker:
    """Kills and stops the children of `parent` in turns, every `period` seconds, until it is told to stop."""

    parent: int
    period: float
    blows: list[Blow] = field(default_factory=list)

    def run(self, is_over: threading.Event) -> None:
        """Begin with a kill."""
        while not is_over.wait(self.period):
            workers = children(self.parent)
            # One at a time, so that the other answers meanwhile, and none that is still loading: it may take a minute.
            if len(workers) > 1 and all(map(connections, workers)):
                self.strike(workers[len(self.blows) // 2 % len(workers)], len(workers))

    def strike(self, worker: int, count: int) -> None:
        """Stop a worker, see whose connections it had, kill it unless it is to hang, and wait for the next one."""
        hangs = len(self.blows) % 2 == 1
        os.kill(worker, signal.SIGSTOP)
        blow = Blow("stopped" if hangs else "killed", time.monotonic(), connections(worker))
        self.blows.append(blow)
        if not hangs:
            os.kill(worker, signal.SIGKILL)
        while time.monotonic() - blow.when < 2 * REPLACED_SECONDS:
            now = children(self.parent)
            if worker not in now and len(now) == count:
                blow.seconds = time.monotonic() - blow.when
                return
            time.sleep(0.05)
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
