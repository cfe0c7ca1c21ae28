"""Parameters of requests: those that name a sequence, and those that the server does not support.

An unsupported parameter would change the meaning of an answer, so a request that has one is refused rather than
answered without it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from trpo_tf.serving.errors import RequestError

MOST_ID_TEXT = 128
"""Limit on the characters of a sequence id that is a text."""

SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
"""Parameters of a request that name a sequence, whose state the server keeps from a step to the next."""

NOT_SERVED = {
    **dict.fromkeys(SEQUENCE, "a sequence is of a policy with state, and of a whole request"),
    **dict.fromkeys(
        ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"), "send tensors in the request"
    ),
    "classification": "take the action, or an output of scores",
}
"""Names of unsupported parameters, each with a hint for the client."""


class SequenceStep(NamedTuple):
    """One step of a sequence, as a request names it: which sequence, and whether the step starts and ends it."""

    sequence_id: int | str
    is_start: bool
    is_end: bool


def check_served(parameters: Mapping[str, Any], where: str) -> None:
    """Raise `RequestError` for a parameter in `NOT_SERVED`; `where` names its owner. Other parameters are ignored."""
    for name in parameters:
        if name in NOT_SERVED:
            raise RequestError(f"parameter {name!r} of {where} is not served: {NOT_SERVED[name]}")


def take_sequence(parameters: dict[str, Any]) -> SequenceStep | None:
    """Remove the parameters in `SEQUENCE` and return the step that they name; None for id 0, an empty one, or no id.

    Raises `RequestError` for an id that is neither an integer of 64 bits nor a short text. It also does for a start or
    end that is not a boolean, or that has no id.
    """
    names = zip(SEQUENCE, (0, False, False), strict=True)
    given, start, end = (parameters.pop(name, otherwise) for name, otherwise in names)
    if not isinstance(start, bool) or not isinstance(end, bool):
        raise RequestError("sequence_start and sequence_end must be true or false")
    is_text = isinstance(given, str) and len(given) <= MOST_ID_TEXT
    if not is_text and not (type(given) is int and -(2**63) <= given < 2**64):
        raise RequestError(f"sequence_id must be an integer of 64 bits, or a text of at most {MOST_ID_TEXT} characters")
    if not given and (start or end):
        raise RequestError("sequence_start and sequence_end need a sequence_id, which is neither 0 nor empty")
    return SequenceStep(given, start, end) if given else None
