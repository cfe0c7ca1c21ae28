"""Profile of a run: a trace of a few iterations, and a table of where their time went."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any, Self

import tensorflow as tf

from trpo_tf.export.support.text_table import text_table
from trpo_tf.runs.layout import TENSORBOARD_FOLDER
from trpo_tf.support.phase_timer import PHASES

FIRST_TRACED, LAST_TRACED = 3, 5


class Profiler:
    """Traces this process's iterations 3 to 5 to the run's TensorBoard folder; by then everything is compiled.

    It traces no more than that, since a trace holds every operation of every thread. The trace is written when the last
    of them ends, or on exit if training ends earlier.
    """

    def __init__(self, folder: Path) -> None:
        """Prepare to trace a run into its folder `folder`."""
        self._folder = str(folder / TENSORBOARD_FOLDER)
        self._iterations, self._tracing = 0, False

    def iteration_ended(self) -> None:
        """Count an iteration, and begin or end the trace when due."""
        self._iterations += 1
        if self._iterations == FIRST_TRACED - 1:
            tf.profiler.experimental.start(self._folder)
            self._tracing = True
        elif self._iterations == LAST_TRACED:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._tracing:
            self._tracing = False
            _wait_for_another_second(Path(self._folder, "plugins", "profile"))
            try:
                tf.profiler.experimental.stop()
            except tf.errors.OpError as error:  # a full disk, say
                raise OSError(f"the trace can't be written: {error.message}") from error


def _wait_for_another_second(traces: Path) -> None:
    """Sleep until a second has passed since the last trace: TensorFlow names a trace by its second, and overwrites."""
    written = [trace.stat().st_mtime for trace in traces.glob("*")]
    time.sleep(min(1.0, max(0.0, max(written, default=0.0) + 1.0 - time.time())))


def phase_milliseconds(logged: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean milliseconds per iteration of each phase, from the metrics of one or more iterations."""
    return {phase: 1000 * fmean(metrics[f"seconds_{phase}"] for metrics in logged) for phase in PHASES}


def phase_table(logged: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of each phase's mean milliseconds and share, from the metrics of one or more iterations."""
    milliseconds = phase_milliseconds(logged)
    whole = sum(milliseconds.values())
    rows = {**milliseconds, "iteration": whole}
    cells = ([name, f"{spent:.1f}", f"{100 * spent / whole:.1f}"] for name, spent in rows.items())
    return text_table(["phase", "ms", "percent"], cells)
