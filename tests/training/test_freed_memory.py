"""Memory that is not in use goes back to the operating system."""

import ctypes
import platform
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.export.support.freed_memory import return_unused_memory

BLOCKS, SIZE = 60_000, 1000


def resident_megabytes(kind: str) -> float:
    return int(re.search(rf"{kind}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1000


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
    before = resident_megabytes("RssAnon")
    return_unused_memory()
    after = resident_megabytes("RssAnon")
    for block in blocks[::100]:
        libc.free(block)
    assert before - after > 40


@pytest.mark.skipif(platform.system() != "Linux", reason="other systems do not list a process's mappings")
def test_pages_of_libraries_are_unmapped_and_come_back():
    """TensorFlow and NumPy compute as before."""
    matrix = np.random.default_rng(0).normal(size=(9, 9))
    before = tf.linalg.inv(matrix).numpy()
    mappings = Path("/proc/self/maps").read_text().splitlines()
    start, end = next(
        line.split()[0].split("-") for line in mappings if "libtensorflow_cc" in line and line.split()[1] == "r-xp"
    )
    ctypes.string_at(int(start, 16), int(end, 16) - int(start, 16))
    touched = resident_megabytes("RssFile")
    return_unused_memory()
    assert touched - resident_megabytes("RssFile") > 100
    np.testing.assert_array_equal(tf.linalg.inv(matrix).numpy(), before)
    np.testing.assert_allclose(np.linalg.inv(matrix), before)
