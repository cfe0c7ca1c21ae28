"""Return memory that is not in use to the operating system."""

import contextlib
import ctypes
import functools
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+ *(.*)")
"""The first line of a mapping in /proc/self/smaps: its addresses, permissions and file."""


def return_unused_memory() -> None:
    """Return freed memory, and pages of libraries that were read but not changed; do nothing where that can't be done.

    glibc keeps what a compiler has freed, since the pages lie between others that are in use. The start of TensorFlow
    reads 300 MB of its libraries, mostly once. A page that is read again comes back from the file.
    """
    libc = ctypes.CDLL(None)
    with contextlib.suppress(AttributeError):  # another C library
        libc.malloc_trim(0)
    with contextlib.suppress(AttributeError, OSError):  # no Linux
        for start, size in _unchanged_mappings(Path("/proc/self/smaps").read_text()):
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


@functools.cache
def return_unused_memory_once(stage: str) -> None:  # noqa: ARG001  the key of the cache
    """Return unused memory the first time that a training of this process reaches a stage.

    Later trainings use libraries that have been read already, so it would gain little. It takes a tenth of a second,
    together with the pages that are read again.
    """
    return_unused_memory()


def _unchanged_mappings(smaps: str) -> Iterator[tuple[int, int]]:
    """Yield address and bytes of each mapping of a library that can't be written, and has no page of its own.

    Pages of its own are those that the loader wrote before it forbade writing. Other files are left out, because
    another thread may unmap one, and map something else in its place.
    """
    start = end = 0
    for line in smaps.splitlines():
        if mapping := _MAPPING.match(line):
            start, end = int(mapping[1], 16), int(mapping[2], 16)
            if ".so" not in mapping[4] or mapping[3] not in ("r--p", "r-xp"):
                end = start
        elif line.startswith("Anonymous:") and line.split()[1] == "0" and end > start:
            yield start, end - start
