"""Child processes that end with their parent."""

import ctypes
import signal
import sys

# Loaded here: a child that is forked while another thread loads a library could wait for ever.
_LIBRARY = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent() -> None:
    """Have the Linux kernel send SIGTERM to this process when its parent ends in any way: for `preexec_fn`."""
    if _LIBRARY is not None:
        set_parent_death_signal = 1
        _LIBRARY.prctl(set_parent_death_signal, signal.SIGTERM)
