"""What gRPC calls may take up: memory for messages that arrive, and streams of watchers."""

import asyncio
from collections import Counter
from typing import Any

from trpo_tf.serving.errors import RequestError

LOOK_SECONDS = 0.01
"""How often messages that arrive are looked at when others wait."""

WAIT_LOOKS, LEAST_LOOKS = 100, 2
"""How many looks a message waits for its turn, about: those that arrive have as many, and fewer the more wait; and how
many each has at least. Looks, not seconds: a process that has no processor for a while hasn't read what is there.
"""


MAX_METADATA, MOST_ENTRIES = 16 * 1024, 256
"""Most bytes of a call's metadata, as of HTTP's head, and most entries."""


class BusyError(Exception):
    """There is too much under way for this call."""


def check_metadata(context: Any) -> None:
    """Raise `RequestError` if a call holds too much metadata: gRPC looks at each frame of it alone."""
    given = context.invocation_metadata()
    if len(given) > MOST_ENTRIES or sum(len(key) + len(value) for key, value in given) > MAX_METADATA:
        raise RequestError(
            f"the call's metadata is larger than {MAX_METADATA} bytes, or has over {MOST_ENTRIES} entries"
        )


class Turns:
    """Messages arrive a few at a time, so that those which stop half way hold a bounded memory.

    gRPC keeps what has arrived of a message that is being read, up to its whole size; one that isn't read yet is held
    to 64 KiB by HTTP/2. The more wait, the less time has each that arrives: so those which stall can't hold up those
    which don't, and where few wait a slow one has its time.
    """

    def __init__(self, most: int, most_waiting: int) -> None:
        """To be used in the event loop; of more than `most_waiting` the longest ends with `BusyError`."""
        self._most, self._free, self._most_waiting = most, most, most_waiting
        self._arriving: dict[asyncio.Timeout, int] = {}  # since which look; the longest first
        self._waiting: dict[asyncio.Future[None], int] = {}  # since which look; the longest first
        self._looks = 0
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, context: Any, seconds: float) -> Any:
        """The call's first message. Raises `TimeoutError` and `BusyError`."""
        async with asyncio.timeout(seconds) as limit:
            if self._free:
                self._free -= 1
            else:
                await self._wait()
            self._arriving[limit] = self._looks
            try:
                return await context.read()
            finally:
                self._arriving.pop(limit, None)
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
        """End those who have had their time, if others wait."""
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
