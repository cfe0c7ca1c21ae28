"""Assign scratch memory to arrays, each of which is reused once its content is no longer needed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trpo_tf.export.c99.expressions import Memory, Step, memories


@dataclass(frozen=True)
class Layout:
    """Scratch arrays, and the name of the array that holds each scratch memory."""

    arrays: list[Memory]
    homes: dict[Memory, str]


def lay_out(steps: Sequence[Step]) -> Layout:
    """Place each scratch memory from the first step that writes it to the last one that reads it."""
    last_read = {memory: number for number, step in enumerate(steps) for memory in memories(step.value)}
    arrays: list[Memory] = []
    taken_until: list[int] = []
    places: dict[Memory, int] = {}
    for number, step in enumerate(steps):
        memory = step.target
        if memory.name or memory in places:
            continue
        place = _free_place(memory, arrays, [until < number for until in taken_until])
        if place == len(arrays):
            arrays.append(replace(memory, name=f"scratch_{place + 1}"))
            taken_until.append(number)
        arrays[place] = replace(arrays[place], size=max(arrays[place].size, memory.size))
        taken_until[place] = last_read.get(memory, number)
        places[memory] = place
    return Layout(arrays, {memory: arrays[place].name for memory, place in places.items()})


def _free_place(memory: Memory, arrays: Sequence[Memory], is_free: Sequence[bool]) -> int:
    """Find the smallest free array that is large enough, or else the largest, or else a new one."""
    excess = {
        place: array.size - memory.size
        for place, array in enumerate(arrays)
        if is_free[place] and array.c_type == memory.c_type
    }
    return min(excess, key=lambda place: (excess[place] < 0, abs(excess[place])), default=len(arrays))
