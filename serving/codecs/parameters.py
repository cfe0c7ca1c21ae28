"""Request parameters that the server does not support.

They would change the meaning of an answer, so a request that has one is refused rather than answered without it.
"""

from collections.abc import Mapping
from typing import Any

from trpo_tf.serving.errors import RequestError

NOT_SERVED = {
    **dict.fromkeys(
        ("sequence_id", "sequence_start", "sequence_end"),
        "the server keeps no state between requests; a policy with state takes it as inputs",
    ),
    **dict.fromkeys(
        ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"), "send tensors in the request"
    ),
    "classification": "take the action, or an output of scores",
}
"""Names of unsupported parameters, each with a hint for the client."""


def check_served(parameters: Mapping[str, Any], where: str) -> None:
    """Raise `RequestError` for a parameter in `NOT_SERVED`; `where` names its owner. Other parameters are ignored."""
    for name in parameters:
        if name in NOT_SERVED:
            raise RequestError(f"parameter {name!r} of {where} is not served: {NOT_SERVED[name]}")
