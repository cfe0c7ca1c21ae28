"""Memory of large requests goes back to the system when they are answered.

glibc keeps blocks of up to 32 MB for later, in each thread's arena, once a block of that size has been freed. Of the
buffers of a few large requests a server would keep a hundred megabytes that way, for good.
"""

import ctypes

_LARGE = 2**20
"""Bytes of a block that is returned at once, and that may stay free at the end of an arena."""

_ARENAS = 2

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of malloc.h


def return_large_blocks() -> None:
    """Set the C library's allocator of this process; one that has no `mallopt` is left alone."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((_TRIM_THRESHOLD, _LARGE), (_MMAP_THRESHOLD, _LARGE), (_ARENA_MAX, _ARENAS)):
            mallopt(parameter, value)
