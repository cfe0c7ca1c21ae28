"""Waiting for a server's processes, and for what they do."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def workers_of(process: Any) -> list[int]:
    """Process numbers of a server's workers."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait until a condition is true, and return what it is then."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)
    return found
