"""Where an iteration's time goes, phase by phase: in seconds, and as regions of a trace."""

import time
from typing import Any

import tensorflow as tf

PHASES = ("physics", "acting", "advantages", "update", "critic", "rest")


class PhaseClock:
    """Seconds of each phase; every moment belongs to one of them, since to enter one leaves the one before.

    Begins in `rest`. A traced clock makes each stay a region of the trace that TensorFlow's profiler records, if it
    does; that costs a microsecond a stay, an untraced one a fraction.
    """

    def __init__(self, *, traced: bool = False) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._traced = traced
        self._region: Any = None
        self._phase, self._since = "rest", time.perf_counter()

    def enter(self, phase: str) -> None:
        """Leave the phase that is going on for `phase`, one of `PHASES`."""
        now = time.perf_counter()
        self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now
        if self._traced:
            self._end_region()
            self._region = tf.profiler.experimental.Trace(phase)

    def stop(self) -> dict[str, float]:
        """Leave the last phase: seconds by phase, which add up to all the time since the clock was made."""
        self.enter("rest")
        self._end_region()
        return self.seconds

    def _end_region(self) -> None:
        if self._region is not None:
            self._region.__exit__(None, None, None)
            self._region = None
