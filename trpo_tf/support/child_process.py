"""Processes that this one starts."""

import ctypes
import signal
import sys


def end_with_parent() -> None:
    """Have this process asked to stop when its parent ends, however that ends: for `preexec_fn`."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
