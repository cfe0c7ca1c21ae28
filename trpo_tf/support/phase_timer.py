"""Time of an iteration's phases: in seconds, and as regions of a trace."""

import time
from collections.abc import Mapping
from typing import Any

PHASES = ("physics", "acting", "advantages", "update", "critic", "rest")


class PhaseClock:
    """Clock that assigns every moment to one phase: entering a phase leaves the one before.

    It begins in `rest`. A traced clock also marks regions in the trace of TensorFlow's profiler, if one is recorded.
    That costs a microsecond for each phase entered, and a fraction of it without `traced`.
    """

    def __init__(self, *, traced: bool = False) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._traced = traced
        self._region: Any = None
        self._phase, self._since = "rest", time.perf_counter()

    def enter(self, phase: str) -> None:
        """Leave the present phase and enter `phase`, one of `PHASES`."""
        now = time.perf_counter()
        self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now
        if self._traced:
            self._end_region()
            import tensorflow as tf  # only here: rollout workers measure phases without it

            self._region = tf.profiler.experimental.Trace(phase)

    def share(self, seconds: Mapping[str, float]) -> None:
        """Move seconds of the present phase to the phases in which another process spent them."""
        self.enter(self._phase)
        for phase, spent in seconds.items():
            self.seconds[phase] += spent
            self.seconds[self._phase] -= spent

    def stop(self) -> dict[str, float]:
        """Stop the clock, and return the seconds of each phase; they add up to the time since it was made."""
        self.enter("rest")
        self._end_region()
        return self.seconds

    def _end_region(self) -> None:
        if self._region is not None:
            self._region.__exit__(None, None, None)
            self._region = None
