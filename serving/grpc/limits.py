"""Limits on gRPC calls: memory for arriving messages, and open health watches."""

import asyncio
from collections import Counter
from itertools import chain
from typing import Any

from trpo_tf.serving.errors import RequestError

LOOK_SECONDS = 0.01
"""How often arriving messages are checked while others wait."""

WAIT_LOOKS, LEAST_LOOKS = 100, 2
"""About how many checks a message waits for its turn, and the least number that an arriving message has.

An arriving message has fewer checks the more messages wait. Checks are counted rather than seconds: a process that got
no CPU for a while has not read what has arrived.
"""

MAX_METADATA, MOST_ENTRIES = 16 * 1024, 256
"""Limits on a call's metadata: bytes (as for an HTTP head) and entries."""


class BusyError(Exception):
    """Raised if too much is under way to take another call."""


def check_metadata(context: Any) -> None:
    """Raise `RequestError` if a call has too much metadata: gRPC itself checks each frame alone."""
    given = context.invocation_metadata()
    if len(given) > MOST_ENTRIES or sum(map(len, chain.from_iterable(given))) > MAX_METADATA:
        raise RequestError(
            f"the call's metadata is larger than {MAX_METADATA} bytes, or has over {MOST_ENTRIES} entries"
        )


class Turns:
    """Lets a few messages arrive at a time, so that stalled ones hold bounded memory.

    gRPC buffers a message that is being read, up to its whole size. HTTP/2 limits one that isn't read yet to 64 KiB.
    The more messages wait, the less time each arriving one has. So stalled messages can't block the others for long,
    and a slow message has enough time where few wait.
    """

    def __init__(self, most: int, most_waiting: int) -> None:
        """Let `most` messages arrive at a time. If more than `most_waiting` wait, the oldest gets `BusyError`."""
        self._most, self._free, self._most_waiting = most, most, most_waiting
        self._arriving: dict[asyncio.Timeout, int] = {}  # number of the check at which each began; oldest first
        self._waiting: dict[asyncio.Future[None], int] = {}  # number of the check at which each began; oldest first
        self._looks = 0
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, context: Any, seconds: float) -> Any:
        """Read the call's first message.

        Raises `TimeoutError` if it does not arrive in time, and `BusyError` if others shortened or took up that time.
        """
        async with asyncio.timeout(seconds) as limit:
            has_turn = bool(self._free)
            try:
                if has_turn:
                    self._free -= 1
                else:
                    await self._wait()
                    has_turn = True
                self._arriving[limit] = self._looks
                return await context.read()
            except asyncio.CancelledError:
                if limit.expired() and limit not in self._arriving:
                    raise BusyError from None
                raise
            finally:
                self._arriving.pop(limit, None)
                if has_turn:
                    self._release()

    async def _wait(self) -> None:
        if len(self._waiting) >= self._most_waiting:
            longest = next(iter(self._waiting))
            del self._waiting[longest]
            if not longest.done():
                longest.set_exception(BusyError())
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = self._looks
        self._watch()
        try:
            await turn
        except asyncio.CancelledError:
            if self._waiting.pop(turn, None) is None and not (turn.cancelled() or turn.exception()):
                self._release()  # it had its turn, and can't take it
            raise

    def _release(self) -> None:
        while self._waiting:
            turn = next(iter(self._waiting))
            del self._waiting[turn]
            if not turn.done():  # its client may have left a moment ago
                turn.set_result(None)
                return
        self._free += 1

    def _watch(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._end_slow)

    def _end_slow(self) -> None:
        """End arriving messages that have used up their checks, if others wait."""
        self._timer = None
        if not (waiting := len(self._waiting)):
            return
        self._looks += 1
        left = WAIT_LOOKS - (self._looks - next(iter(self._waiting.values())))
        patience = max(LEAST_LOOKS, min(left, WAIT_LOOKS * self._most / waiting))
        slow = [limit for limit, since in self._arriving.items() if self._looks - since >= patience]
        for limit in slow[:waiting]:
            del self._arriving[limit]
            limit.reschedule(asyncio.get_running_loop().time())
        self._watch()


class Watchers:
    """Counts open health watches, limited in all and on each connection."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most, self._most_of_one = most, most_of_one
        self._peers: Counter[str] = Counter()
        self._count = 0

    def add(self, peer: str) -> None:
        """Count another watch of a connection. Raises `BusyError`."""
        if self._count >= self._most or self._peers[peer] >= self._most_of_one:
            raise BusyError
        self._count += 1
        self._peers[peer] += 1

    def remove(self, peer: str) -> None:
        """Count a watch of a connection as ended."""
        self._count -= 1
        self._peers[peer] -= 1
        if not self._peers[peer]:
            del self._peers[peer]
