"""Settings of the memory allocator, so that the memory of large requests is returned to the system.

Once a large block has been freed, glibc keeps blocks of up to that size (at most 32 MB) in each thread's arena. After a
few large requests a server would keep a hundred megabytes for good.
"""

import ctypes

_LARGE = 2**20
"""Size in bytes from which a block is returned at once, and most free bytes at the end of an arena."""

_ARENAS = 2

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of malloc.h


def return_large_blocks() -> None:
    """Set up the C library's allocator of this process. It does nothing if the library has no `mallopt`."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((_TRIM_THRESHOLD, _LARGE), (_MMAP_THRESHOLD, _LARGE), (_ARENA_MAX, _ARENAS)):
            mallopt(parameter, value)
