"""Memory that forked processes share: each process writes its own slot and reads all slots.

A slot keeps the last complete content, even if its writer is killed during a write. It has two buffers, which are
written alternately, and a byte that says which one is current. If a checksum fails, the buffer was overwritten while it
was read, and the reader tries again.
"""

import mmap
import struct
import zlib

PLACE_BYTES = 16 * 2**20
"""Size in bytes of each buffer of a slot. Pages that were never written take no memory."""

_HEADER = struct.Struct("<II")  # length and CRC-32 of what follows
_SLOT_BYTES = mmap.PAGESIZE + 2 * PLACE_BYTES
_ATTEMPTS = 100


class SharedCounters:
    """Shared memory with a number of slots. It must be created before the fork."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._memory = mmap.mmap(-1, slots * _SLOT_BYTES)

    def write(self, slot: int, content: bytes) -> bool:
        """Replace the content of a slot; return False if `content` is too large. Only one process may write a slot."""
        if _HEADER.size + len(content) > PLACE_BYTES:
            return False
        place = 2 if self._memory[slot * _SLOT_BYTES] == 1 else 1
        start = _start(slot, place)
        self._memory[start : start + _HEADER.size + len(content)] = (
            _HEADER.pack(len(content), zlib.crc32(content)) + content
        )
        self._memory[slot * _SLOT_BYTES] = place  # last: the buffer becomes current only once it is complete
        return True

    def read(self, slot: int) -> bytes:
        """Return the content of a slot; empty if it was never written."""
        for _ in range(_ATTEMPTS):
            place = self._memory[slot * _SLOT_BYTES]
            if place == 0:
                return b""
            start = _start(slot, place)
            length, checksum = _HEADER.unpack_from(self._memory, start)
            content = self._memory[start + _HEADER.size : start + _HEADER.size + length]
            if zlib.crc32(content) == checksum:
                return content
        raise RuntimeError(f"slot {slot} was overwritten during each of {_ATTEMPTS} reads")


def _start(slot: int, place: int) -> int:
    return slot * _SLOT_BYTES + mmap.PAGESIZE + (place - 1) * PLACE_BYTES
