"""Parameters that would change what an answer means, and are not served: who sends them must know."""

from collections.abc import Mapping
from typing import Any

from trpo_tf.serving.errors import RequestError

NOT_SERVED = {
    **dict.fromkeys(("sequence_id", "sequence_start", "sequence_end"), "a policy has no state between requests"),
    **dict.fromkeys(
        ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"), "send tensors in the request"
    ),
    "classification": "take the action, or an output of scores",
}
"""Each with what holds instead."""


def check_served(parameters: Mapping[str, Any], where: str) -> None:
    """Raise `RequestError` for a parameter that is not served; `where` says whose it is. Others are hints."""
    for name in parameters:
        if name in NOT_SERVED:
            raise RequestError(f"parameter {name!r} of {where} is not served: {NOT_SERVED[name]}")
