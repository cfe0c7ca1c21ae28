"""Stop at a safe point after SIGINT or SIGTERM."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


_interrupts: list[int] = []
"""Signals that arrived within `remembered_interrupts`."""


@contextlib.contextmanager
def remembered_interrupts() -> Iterator[None]:
    """Have SIGINT raise `KeyboardInterrupt`, as Python does, and `raise_if_interrupted` raise it again.

    A library that is being imported, or a destructor, may catch the first one: the command would run on. A handler that
    is not Python's stays, and so does a SIGINT that is ignored.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _interrupts.clear()


def _remember(number: int, _frame: FrameType | None) -> None:
    _interrupts.append(number)
    raise KeyboardInterrupt


def raise_if_interrupted() -> None:
    """Raise `KeyboardInterrupt` if a SIGINT has arrived within `remembered_interrupts`."""
    if _interrupts:
        raise KeyboardInterrupt


class StopRequest:
    """Context that notes a first SIGINT or SIGTERM in `requested`; a second one raises `KeyboardInterrupt`.

    A SIGINT that arrived before, and was caught by a library, raises it on entry. SIGTERM ends a process that is forked
    within, as it would without the context: an environment may end its own processes so.

    Outside the main thread, where Python allows no handlers, it does nothing. It also leaves handlers alone that the
    program around Python has set, such as a simulator with a console, since Python can't set them again.
    """

    def __init__(self) -> None:
        self.requested = False
        self._process = os.getpid()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        raise_if_interrupted()
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: found for number in _SIGNALS if (found := signal.getsignal(number)) is not None}
        self.hold()
        return self

    def hold(self) -> None:
        """Take the signals again: simulators set handlers of their own as they start, also ones written in C."""
        for number in self._previous:
            signal.signal(number, self._note)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGTERM and os.getpid() != self._process:
            signal.signal(number, self._previous[number])  # type: ignore[arg-type]
            signal.raise_signal(number)
            return
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
