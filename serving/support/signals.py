"""Signal handling while the server starts and ends. In between, the event loop or the parent process does it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

_ENDING = (signal.SIGTERM, signal.SIGINT)

_HARMLESS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that must not end the server, though by default they end a process."""


_received: list[int] = []


class Stopped(BaseException):
    """SIGTERM or SIGINT arrived before the server answered requests."""


@contextmanager
def guarded() -> Iterator[None]:
    """Ignore signals that must not end the server, and raise `Stopped` on SIGTERM and SIGINT.

    Code inside may replace these handlers. Process 1 of a container can't be stopped without handlers: the kernel does
    not apply the default action of a signal to it.
    """
    if signal.getsignal(signal.SIGTERM) is not _stop:  # calls may be nested
        _received.clear()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _HARMLESS}
    before |= {number: signal.signal(number, _stop) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None if it was not set from Python
                signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Delay `Stopped` until the block ends. Inside an import, native code would turn it into another error, or crash.

    Blocking the signals would not do: another thread receives them, and Python still calls the handler in this one.
    """
    guarded_ones = [number for number in _ENDING if signal.getsignal(number) is _stop]
    for number in guarded_ones:
        signal.signal(number, _record)
    try:
        yield
    finally:
        for number in guarded_ones:
            signal.signal(number, _stop)
    if guarded_ones and _received:
        raise Stopped


def ignore() -> None:
    """Ignore all signals that are handled here: the process is about to end, and its exit status must not change."""
    for number in (*_ENDING, *_HARMLESS):
        signal.signal(number, signal.SIG_IGN)


def stop_requested() -> bool:
    """Return whether SIGTERM or SIGINT arrived before the server answered requests.

    `Stopped` alone does not tell: Python ignores it if it is raised in a finalizer.
    """
    return bool(_received)


def _record(number: int, _frame: object) -> None:
    _received.append(number)


def _stop(number: int, _frame: object) -> NoReturn:
    _received.append(number)
    raise Stopped
