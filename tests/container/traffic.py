"""Load on a server: keep-alive connections that each ask again as soon as they are answered.

`python tests/container/traffic.py PORT MODEL [--connections 16] [--seconds 5] [--cpu 1]` asks until the time is over,
or without one until the server refuses every connection. It prints a line once every connection has had an answer,
and in the end what happened as JSON. A request fails if it is not answered, or with another status than 200; one that
could not be sent, as no connection was to be had, has not failed.
"""

import argparse
import asyncio
import json
import os
import re
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from typing import Any

import uvloop

BODY = b'{"inputs": [{"name": "obs", "datatype": "FP32", "shape": [1, 4], "data": [0.1, -0.2, 0.05, 0.3]}]}'
VERSION = re.compile(rb'"model_version":"([^"]*)"')
LONGEST_MICROSECONDS = 1_000_000
ALL_ANSWERED = "every connection is answered"


class Tally:
    """What has happened. `microseconds` counts answers by how long they took, to the microsecond."""

    def __init__(self, model: str, connections: int) -> None:
        head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n"
        self.request = head.encode() + BODY
        self.wanted = connections
        self.is_over = False
        self.failures: Counter[str] = Counter()
        self.microseconds: Counter[int] = Counter()
        self.versions: set[str] = set()
        self._waiting = connections

    def first_answer(self) -> None:
        """A connection has had its first answer."""
        self._waiting -= 1
        if self._waiting == 0:
            print(ALL_ANSWERED, flush=True)

    def report(self) -> dict[str, Any]:
        """Counts, and percentiles in microseconds."""
        answered = sum(self.microseconds.values())
        return {
            "answered": answered,
            "failed": sum(self.failures.values()),
            "failures": dict(self.failures),
            "p50_us": self._percentile(0.50 * answered),
            "p99_us": self._percentile(0.99 * answered),
            "versions": sorted(self.versions),
        }

    def _percentile(self, rank: float) -> int:
        seen = 0
        for value in sorted(self.microseconds):
            seen += self.microseconds[value]
            if seen >= rank:
                return value
        return 0


class Asking(asyncio.Protocol, ABC):
    """One connection: asks, reads the whole answer, asks again."""

    def __init__(self) -> None:
        self._received = b""
        self._is_waiting = False
        self.lost = asyncio.get_running_loop().create_future()

    @abstractmethod
    def request(self) -> bytes:
        """What to send next."""

    @abstractmethod
    def answered(self, head: bytes, body: bytes, microseconds: int) -> bool:
        """Take an answer; whether to ask again."""

    @abstractmethod
    def unanswered(self, error: Exception | None) -> None:
        """Take note that the connection was closed with a request under way."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._ask()

    def _ask(self) -> None:
        self._is_waiting, self._sent = True, time.perf_counter()
        self.transport.write(self.request())

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or len(body) < int(re.search(rb"content-length: (\d+)", head)[1]):  # type: ignore[index]
            return
        self._received, self._is_waiting = b"", False
        goes_on = self.answered(head, body, int((time.perf_counter() - self._sent) * 1e6))
        if b"connection: close" in head or not goes_on:
            self.transport.close()
        else:
            self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if self._is_waiting:
            self.unanswered(error)
        if not self.lost.done():  # who waited may have given up
            self.lost.set_result(None)


class Client(Asking):
    """One that always asks the same, and counts what it sees in a tally."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally
        self._is_known = False

    def request(self) -> bytes:
        return self._tally.request

    def answered(self, head: bytes, body: bytes, microseconds: int) -> bool:
        if not self._is_known:
            self._is_known = True
            self._tally.first_answer()
        version = VERSION.search(body)
        if head.startswith(b"HTTP/1.1 200 ") and version:
            self._tally.microseconds[min(microseconds, LONGEST_MICROSECONDS)] += 1
            self._tally.versions.add(version[1].decode())
        else:
            self._tally.failures[f"answered {head.partition(b' ')[2][:40].decode()}"] += 1
        return not self._tally.is_over

    def unanswered(self, error: Exception | None) -> None:
        self._tally.failures[f"not answered: {error or 'closed'}"] += 1


async def _keep_asking(tally: Tally, port: int) -> None:
    loop = asyncio.get_running_loop()
    while not tally.is_over:
        try:
            _, client = await loop.create_connection(lambda: Client(tally), "127.0.0.1", port)
        except ConnectionRefusedError:
            return
        await client.lost


async def ask(tally: Tally, port: int, seconds: float | None) -> None:
    """Ask until the time is over, or the server refuses everybody."""
    asking = [asyncio.ensure_future(_keep_asking(tally, port)) for _ in range(tally.wanted)]
    if seconds is not None:
        await asyncio.wait(asking, timeout=seconds)
        tally.is_over = True
    await asyncio.gather(*asking)


def main() -> None:
    """Ask, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("model")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--cpu", type=int)
    arguments = parser.parse_args()
    if arguments.cpu is not None:
        os.sched_setaffinity(0, {arguments.cpu})
    tally = Tally(arguments.model, arguments.connections)
    uvloop.run(ask(tally, arguments.port, arguments.seconds))
    json.dump(tally.report(), sys.stdout)


if __name__ == "__main__":
    main()
