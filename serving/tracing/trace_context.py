"""W3C Trace Context: the header that says which trace a request belongs to (https://www.w3.org/TR/trace-context/)."""

import re
from typing import NamedTuple

# A later version may have more behind these fields, after another dash.
_PATTERN = re.compile(
    rb"(?!ff)(?P<version>[0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?P<more>-.*)?"
)


class TraceParent(NamedTuple):
    """Ids of the trace and of the caller's span, in hex, and whether the caller records the trace."""

    trace_id: str
    span_id: str
    sampled: bool


def parse_traceparent(value: bytes) -> TraceParent | None:
    """Parse a `traceparent` header; return None unless it conforms to the standard."""
    found = _PATTERN.fullmatch(value)
    if found is None or (found["version"] == b"00" and found["more"] is not None):
        return None
    return TraceParent(found[2].decode(), found[3].decode(), bool(int(found[4], 16) & 1))
