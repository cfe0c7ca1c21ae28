"""Scans the model repository in a thread that the process does not wait for when it ends.

A file system that doesn't answer (a dead NFS or FUSE mount) blocks a read for ever. The threads of
`loop.run_in_executor` would not do, since Python joins them at its exit.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from trpo_tf.serving.support.logs import emit

SLOW_SECONDS = 5.0
"""Duration after which a scan is logged as slow, and logged again when it ends."""

END_SECONDS = 2.0
"""How long the end of the process waits for a running scan: long enough to load a small model."""

T = TypeVar("T")


class ScanThread:
    """Runs one call at a time, each in a daemon thread; the event loop goes on meanwhile."""

    def __init__(self) -> None:
        self._turn, self._thread = threading.Lock(), threading.Thread()

    async def run(self, call: Callable[[], T]) -> T:
        """Run `call` in a thread, and return or raise its result. If the caller is cancelled, `call` goes on."""
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[T] = loop.create_future()
        started = time.monotonic()
        slow = loop.call_later(SLOW_SECONDS, _log_slow)

        def work() -> None:
            with self._turn:
                try:
                    answer: tuple[Callable[[Any], None], Any] = answered.set_result, call()
                except BaseException as error:  # noqa: BLE001 (the caller gets it)
                    answer = answered.set_exception, error
            try:
                loop.call_soon_threadsafe(lambda: answered.done() or answer[0](answer[1]))
            except RuntimeError:
                return  # the loop is closed, since the process ends

        self._thread = threading.Thread(target=work, name="repository", daemon=True)
        self._thread.start()
        try:
            return await answered
        finally:
            slow.cancel()
            if answered.done() and not answered.cancelled() and (seconds := time.monotonic() - started) > SLOW_SECONDS:
                emit("model", f"the scan of the repository is over; it took {seconds:.0f} s")

    def finish(self) -> None:
        """Wait for a running call, up to `END_SECONDS`, before the interpreter shuts down."""
        if self._thread.ident is not None:
            self._thread.join(END_SECONDS)


def _log_slow() -> None:
    message = (
        f"the scan of the repository has taken {SLOW_SECONDS:.0f} s and goes on: no change is followed meanwhile; "
        "see whether its file system answers"
    )
    emit("model", message, level=logging.WARNING)
