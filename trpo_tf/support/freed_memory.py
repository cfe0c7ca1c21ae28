"""Return memory that was freed to the operating system."""

import ctypes


def return_freed_memory() -> None:
    """Have glibc return all pages that hold nothing; with another C library do nothing.

    glibc keeps what a compiler has freed, since the pages lie between others that are in use.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
