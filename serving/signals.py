"""What signals do while the server starts and ends; in between they are the event loop's, or the parent's."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

_ENDING = (signal.SIGTERM, signal.SIGINT)

_HARMLESS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that would end a process which does not ask for them."""


class Stopped(BaseException):
    """SIGTERM or SIGINT came before the server answered."""


@contextmanager
def guarded() -> Iterator[None]:
    """Ignore what must not end the server, and have SIGTERM and SIGINT raise `Stopped`, unless another handler is set.

    Process 1 of a container has no other way to be stopped: the kernel spares it what a signal does by default.
    """
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _HARMLESS}
    before |= {number: signal.signal(number, _stop) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # one that was not set by Python
                signal.signal(number, handler)


def ignore() -> None:
    """Let no signal change the exit status any more: the process is about to end."""
    for number in (*_ENDING, *_HARMLESS):
        signal.signal(number, signal.SIG_IGN)


def _stop(_number: int, _frame: object) -> NoReturn:
    raise Stopped
