"""Memory that two processes share, through which arrays go without being pickled."""

import mmap
import os
import pickle
import tempfile
from typing import Any, NamedTuple, Self

import numpy as np

_ALIGNMENT = 64


class Packed(NamedTuple):
    """A value in a block: its pickle without the arrays, and where in the block each of these is."""

    pickled: bytes
    places: tuple[slice, ...]


class SharedBlock:
    """File in memory that has no name: nothing is left of it when the processes that have it open are gone.

    Its first page holds a counter, and the rest holds the value that was last written.
    """

    def __init__(self, descriptor: int) -> None:
        """Map the file with this descriptor, which must have a page at least."""
        self.descriptor = descriptor
        self._counter = np.frombuffer(mmap.mmap(descriptor, mmap.PAGESIZE), np.int64, 1)
        self._map = mmap.mmap(descriptor, 0)

    @classmethod
    def create(cls) -> Self:
        """Return a new block."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("trpo-tf")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, mmap.PAGESIZE)
        return cls(descriptor)

    @property
    def count(self) -> int:
        """The counter's value."""
        return int(self._counter[0])

    def count_up(self) -> None:
        """Add one to the counter."""
        self._counter[0] += 1

    def write(self, value: Any) -> Packed:
        """Write a value's arrays in place of those before, and return what `read` needs."""
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        places, end = [], mmap.PAGESIZE
        raw = [buffer.raw() for buffer in buffers]
        for part in raw:
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = start + part.nbytes
            places.append(slice(start, end))
        if end > len(self._map):
            os.ftruncate(self.descriptor, end)
            self._map = mmap.mmap(self.descriptor, end)
        for place, part in zip(places, raw, strict=True):
            self._map[place] = part
        return Packed(pickled, tuple(places))

    def read(self, packed: Packed) -> Any:
        """Return a copy of the value that the other process wrote."""
        if packed.places and packed.places[-1].stop > len(self._map):
            self._map = mmap.mmap(self.descriptor, packed.places[-1].stop)
        return pickle.loads(packed.pickled, buffers=[bytearray(self._map[place]) for place in packed.places])

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)
