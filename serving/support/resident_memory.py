"""Resident memory of this process."""

import os


def resident_bytes() -> int:
    """Return this process's resident memory in bytes; 0 without /proc, or if no file can be opened."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0
