"""The setting `memory`: a kind of recurrent cell and its number of units, as in gru:64."""

import re

from trpo_tf.errors import UserError

KINDS = ("gru", "lstm")
_MOST_UNITS = 4096


def parse_memory(text: str) -> tuple[str, int] | None:
    """Return the cell's kind and its number of units, or None if there is no cell. Raises `UserError`."""
    if not text:
        return None
    kind, _, count = text.partition(":")
    units = int(count) if re.fullmatch(r"[0-9]{1,6}", count) else 0
    if kind not in KINDS or not 1 <= units <= _MOST_UNITS:
        known = " or ".join(f"{kind}:N" for kind in KINDS)
        raise UserError(f"memory must be {known} with N from 1 to {_MOST_UNITS}, such as gru:64, not {text!r}")
    return kind, units
