"""What gRPC calls may take up: memory for messages that arrive, and streams of watchers."""

import asyncio
from collections import Counter, deque
from typing import Any

PATIENCE = 0.5
"""Seconds that a message may take to arrive while others wait for its turn."""


class BusyError(Exception):
    """There is too much under way for this call."""


class Turns:
    """Messages arrive a few at a time, so that those which stop half way hold a bounded memory.

    gRPC keeps what has arrived of a message that is being read, up to its whole size; one that isn't read yet is held
    to 64 KiB by HTTP/2. When others wait, whoever takes longer than `PATIENCE` is out of time. The newest is next, so
    that those which stall don't hold up those which don't.
    """

    def __init__(self, most: int, most_waiting: int) -> None:
        """To be used in the event loop; of more than `most_waiting` the longest ends with `BusyError`."""
        self._free, self._most_waiting = most, most_waiting
        self._arriving: dict[asyncio.Timeout, float] = {}  # since when; the longest first
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, context: Any, seconds: float) -> Any:
        """The call's first message. Raises `TimeoutError` and `BusyError`."""
        async with asyncio.timeout(seconds) as limit:
            if self._free:
                self._free -= 1
            else:
                await self._wait()
            self._arriving[limit] = asyncio.get_running_loop().time()
            if self._waiting:
                self._watch()
            try:
                return await context.read()
            finally:
                self._arriving.pop(limit, None)
                self._release()

    async def _wait(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        if len(self._waiting) > self._most_waiting:
            self._waiting.popleft().set_exception(BusyError())
        self._watch()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._release()  # it had its turn, and can't take it
            raise

    def _release(self) -> None:
        while self._waiting:
            turn = self._waiting.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _watch(self) -> None:
        """See to it that none who arrives keeps the others waiting."""
        if self._timer is None and self._arriving:
            until = next(iter(self._arriving.values())) + PATIENCE
            self._timer = asyncio.get_running_loop().call_at(until, self._end_slow)

    def _end_slow(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        waiting = sum(not turn.done() for turn in self._waiting)
        slow = [limit for limit, since in self._arriving.items() if now - since >= PATIENCE]
        for limit in slow[:waiting]:
            del self._arriving[limit]
            limit.reschedule(now)
        if waiting:
            self._watch()


class Watchers:
    """Streams that stay open to be told of changes: so many in all, and on one connection."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most, self._most_of_one = most, most_of_one
        self._peers: Counter[str] = Counter()
        self._count = 0

    def add(self, peer: str) -> None:
        """Count one more of a connection. Raises `BusyError`."""
        if self._count >= self._most or self._peers[peer] >= self._most_of_one:
            raise BusyError
        self._count += 1
        self._peers[peer] += 1

    def remove(self, peer: str) -> None:
        """Count one less."""
        self._count -= 1
        self._peers[peer] -= 1
        if not self._peers[peer]:
            del self._peers[peer]
