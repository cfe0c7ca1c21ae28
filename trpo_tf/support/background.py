"""Run a function in a thread that a failure does not wait for."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

_NAME = "trpo-tf-background"


@contextlib.contextmanager
def in_background(function: Callable[..., Any], *arguments: Any) -> Iterator[None]:
    """Call `function` in a thread, which has ended when the context is left without an exception.

    After an exception the thread goes on, since Python can't stop it; Python waits for it at its exit. Exceptions of
    `function` are dropped: it only prepares what the context does itself if need be.
    """

    def call() -> None:
        with contextlib.suppress(Exception):
            function(*arguments)

    thread = threading.Thread(target=call, name=_NAME)
    thread.start()
    yield
    thread.join()


def is_left_behind() -> bool:
    """Return whether a thread of `in_background` still runs."""
    return any(thread.name == _NAME for thread in threading.enumerate())
