"""Child processes that end with their parent."""

import ctypes
import signal
import sys


def end_with_parent() -> None:
    """Have the Linux kernel send SIGTERM to this process when its parent ends in any way: for `preexec_fn`."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
