"""Memory that forked processes share: each writes its own slot as often as it likes, and reads everybody's.

A slot keeps what was last written whole, even if its writer is killed in the middle: it has two places, which are
written in turn, and a byte that says which one holds. A checksum tells a reader who was overtaken to look again.
"""

import mmap
import struct
import zlib

PLACE_BYTES = 16 * 2**20
"""Room for what a slot holds. Memory that was never written costs nothing."""

_HEADER = struct.Struct("<II")  # length and CRC-32 of what follows
_SLOT_BYTES = mmap.PAGESIZE + 2 * PLACE_BYTES
_ATTEMPTS = 100


class SharedCounters:
    """`slots` pieces of memory; make it before the fork."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._memory = mmap.mmap(-1, slots * _SLOT_BYTES)

    def write(self, slot: int, content: bytes) -> bool:
        """Replace what the slot holds, which only one process may; False if it has no room for that."""
        if _HEADER.size + len(content) > PLACE_BYTES:
            return False
        place = 2 if self._memory[slot * _SLOT_BYTES] == 1 else 1
        start = _start(slot, place)
        self._memory[start : start + _HEADER.size + len(content)] = (
            _HEADER.pack(len(content), zlib.crc32(content)) + content
        )
        self._memory[slot * _SLOT_BYTES] = place
        return True

    def read(self, slot: int) -> bytes:
        """What the slot holds; nothing before it was written."""
        for _ in range(_ATTEMPTS):
            place = self._memory[slot * _SLOT_BYTES]
            if place == 0:
                return b""
            start = _start(slot, place)
            length, checksum = _HEADER.unpack_from(self._memory, start)
            content = self._memory[start + _HEADER.size : start + _HEADER.size + length]
            if zlib.crc32(content) == checksum:
                return content
        raise RuntimeError(f"slot {slot} is never at rest")


def _start(slot: int, place: int) -> int:
    return slot * _SLOT_BYTES + mmap.PAGESIZE + (place - 1) * PLACE_BYTES
