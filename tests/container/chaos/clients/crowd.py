"""The processes of all clients, on one core."""

import multiprocessing
import os
import queue
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from types import ModuleType
from typing import Any

from tests.container.chaos import probes
from tests.container.chaos.clients import amplifying, episodes, grpc_clients, http_clients, rude, rude_grpc, silent
from tests.container.chaos.target import Target
from tests.container.engine import CheckError

CORE = max(os.sched_getaffinity(0))
"""Of all that is not the server."""

TO_THE_END: tuple[ModuleType, ...] = (http_clients, grpc_clients, episodes, silent, rude_grpc, amplifying)
"""Clients that go on while the server ends."""

BEFORE_THE_END: tuple[ModuleType, ...] = (rude, probes)
POLITENESS, FULL_POLITENESS = 5, 10
"""By how much clients leave the core to others. Good ones are less polite: the server shall have its work from them."""

FULLY_POLITE = ("silent", "rude_grpc", "amplifying")

REPORT_SECONDS = 90.0
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


def _act(name: str, run: Callable[[Target, Event], Any], target: Target, is_over: Event, reports: "Queue[Any]") -> None:
    os.sched_setaffinity(0, {CORE})
    os.nice(FULL_POLITENESS if name in FULLY_POLITE else POLITENESS)
    reports.put((name, run(target, is_over)))


def _name(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


class Crowd:
    """All clients, in two groups that end one after the other. `found` has their reports by module."""

    def __init__(
        self,
        target: Target,
        before_the_end: tuple[ModuleType, ...] = BEFORE_THE_END,
        to_the_end: tuple[ModuleType, ...] = TO_THE_END,
    ) -> None:
        self.found: dict[str, Any] = {}
        self._reports: Queue[Any] = PROCESSES.Queue()
        self._first, self._rest = before_the_end, to_the_end
        self._ends = {group: PROCESSES.Event() for group in (before_the_end, to_the_end)}
        self._processes = {
            _name(module): PROCESSES.Process(
                target=_act, args=(_name(module), module.run, target, is_over, self._reports), daemon=True
            )
            for group, is_over in self._ends.items()
            for module in group
        }
        for process in self._processes.values():
            process.start()

    def end_first(self) -> None:
        """End those that don't go on while the server ends. Raises `CheckError` if one doesn't."""
        self._end(self._first)

    def end_rest(self) -> None:
        """End the others. Raises `CheckError` if one doesn't."""
        self._end(self._rest)

    def _end(self, group: tuple[ModuleType, ...]) -> None:
        self._ends[group].set()
        deadline = time.monotonic() + REPORT_SECONDS
        while missing := {_name(module) for module in group} - set(self.found):
            with suppress(queue.Empty):
                name, report = self._reports.get(timeout=1.0)
                self.found[name] = report
                continue
            gone = [name for name in missing if not self._processes[name].is_alive()]
            if gone or time.monotonic() > deadline:
                raise CheckError(f"these clients did not report: {', '.join(gone or missing)}")
