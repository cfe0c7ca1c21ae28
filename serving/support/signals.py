"""What signals do while the server starts and ends; in between they are the event loop's, or the parent's."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

_ENDING = (signal.SIGTERM, signal.SIGINT)

_HARMLESS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that would end a process which does not ask for them."""


_told: list[int] = []


class Stopped(BaseException):
    """SIGTERM or SIGINT came before the server answered."""


@contextmanager
def guarded() -> Iterator[None]:
    """Ignore what must not end the server, and have SIGTERM and SIGINT raise `Stopped`, unless another handler is set.

    Process 1 of a container has no other way to be stopped: the kernel spares it what a signal does by default.
    """
    if signal.getsignal(signal.SIGTERM) is not _stop:  # it may be within another
        _told.clear()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _HARMLESS}
    before |= {number: signal.signal(number, _stop) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # one that was not set by Python
                signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Raise `Stopped` only after an import: native code turns it into an error of its own, or crashes later.

    To block the signals would not do: another thread takes them, and Python still calls the handler in this one.
    """
    guarded_ones = [number for number in _ENDING if signal.getsignal(number) is _stop]
    for number in guarded_ones:
        signal.signal(number, _remember)
    try:
        yield
    finally:
        for number in guarded_ones:
            signal.signal(number, _stop)
    if guarded_ones and _told:
        raise Stopped


def ignore() -> None:
    """Let no signal change the exit status any more: the process is about to end."""
    for number in (*_ENDING, *_HARMLESS):
        signal.signal(number, signal.SIG_IGN)


def was_told() -> bool:
    """Whether SIGTERM or SIGINT came before the server answered. `Stopped` is lost if it is raised in a finalizer."""
    return bool(_told)


def _remember(number: int, _frame: object) -> None:
    _told.append(number)


def _stop(number: int, _frame: object) -> NoReturn:
    _told.append(number)
    raise Stopped
