"""Freed memory goes back to the operating system."""

import ctypes
import platform
import re
from pathlib import Path

import pytest

from trpo_tf.support.freed_memory import return_freed_memory

BLOCKS, SIZE = 60_000, 1000


def resident_megabytes() -> float:
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no malloc_trim")
def test_pages_between_others_in_use_are_returned():
    """Of 60 MB in small blocks all but every hundredth are freed, so that the heap can't shrink at its end."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    blocks = [libc.malloc(SIZE) for _ in range(BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, SIZE)
    for number, block in enumerate(blocks):
        if number % 100:
            libc.free(block)
    before = resident_megabytes()
    return_freed_memory()
    after = resident_megabytes()
    for block in blocks[::100]:
        libc.free(block)
    assert before - after > 40
