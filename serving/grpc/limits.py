"""Limits on gRPC calls: memory for messages that arrive and answers that are not taken, and open streams."""

import asyncio
from collections import Counter
from itertools import chain
from typing import Any

from trpo_tf.serving.errors import RequestError
from trpo_tf.serving.support.resident_memory import resident_bytes

LOOK_SECONDS = 0.01
"""How often arriving messages are checked while others wait, and memory while many streams wait."""

WAIT_LOOKS, LEAST_LOOKS = 100, 2
"""About how many checks a message waits for its turn, and the least number that an arriving message has.

An arriving message has fewer checks the more messages wait. Checks are counted rather than seconds: a process that got
no CPU for a while has not read what has arrived.
"""

MAX_METADATA, MOST_ENTRIES = 16 * 1024, 256
"""Limits on a call's metadata: bytes (as for an HTTP head) and entries."""


SMALL_ANSWER = 16 * 1024
"""Bytes up to which an answer is not counted while its client takes it."""


class BusyError(Exception):
    """Raised if too much is under way to take another call."""


class StoppingError(Exception):
    """Raised if a stream can't go on, since the server stops."""


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


class StreamReader:
    """Reads the messages of streams, and ends waiting streams if the process's memory grows too much.

    gRPC does not tell a stream that waits for a message from one whose message has arrived in part, up to its whole
    size. The process's memory tells: streams that only wait take none.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        """Let `most` streams wait in any case, and more of them while memory grows by at most `most_bytes`."""
        self._most, self._most_bytes, self._bytes_before, self._is_closed = most, most_bytes, 0, False
        self._waiting: dict[asyncio.Timeout, None] = {}  # longest first
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, context: Any) -> Any:
        """Read a stream's next message.

        Raises `BusyError` if the stream waited longest while memory grew, and `StoppingError` after `close`.
        """
        if self._is_closed:
            raise StoppingError
        try:
            async with asyncio.timeout(None) as limit:
                self._waiting[limit] = None
                self._watch()
                try:
                    return await context.read()
                finally:
                    self._waiting.pop(limit, None)
        except TimeoutError:
            raise (StoppingError if self._is_closed else BusyError) from None

    def close(self) -> None:
        """End all streams: those that are being answered, after their answer."""
        self._is_closed = True
        self._end(len(self._waiting))

    def _watch(self) -> None:
        if self._timer is None and len(self._waiting) > self._most:
            self._bytes_before = self._bytes_before or resident_bytes()
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """End half of the streams beyond `most` if memory has grown since there were that many."""
        self._timer = None
        more = len(self._waiting) - self._most
        if more <= 0:
            self._bytes_before = 0
        elif resident_bytes() - self._bytes_before > self._most_bytes:
            self._end((more + 1) // 2)
        self._watch()

    def _end(self, count: int) -> None:
        """End the streams that have waited longest."""
        for limit in list(self._waiting)[:count]:
            del self._waiting[limit]
            limit.reschedule(asyncio.get_running_loop().time())


class OpenStreams:
    """Counts open streams, limited in all and on each connection."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most, self._most_of_one = most, most_of_one
        self._peers: Counter[str] = Counter()
        self._count = 0

    def add(self, peer: str) -> None:
        """Count another stream of a connection. Raises `BusyError`."""
        is_one = not peer.startswith("unix:")  # the name of every connection to a Unix socket
        if self._count >= self._most or (is_one and self._peers[peer] >= self._most_of_one):
            raise BusyError
        self._count += 1
        self._peers[peer] += 1

    def remove(self, peer: str) -> None:
        """Count a stream of a connection as ended."""
        self._count -= 1
        self._peers[peer] -= 1
        if not self._peers[peer]:
            del self._peers[peer]


class UntakenAnswers:
    """Counts the bytes of large answers until their clients have taken them."""

    def __init__(self, most: int) -> None:
        self._most, self._size = most, 0

    def add(self, size: int) -> int:
        """Count an answer, and return what to pass to `remove`: 0 for a small one. Raises `BusyError`."""
        if size <= SMALL_ANSWER:
            return 0
        if self._size + size > self._most and self._size:
            raise BusyError
        self._size += size
        return size

    def remove(self, size: int) -> None:
        """Count an answer as taken."""
        self._size -= size
