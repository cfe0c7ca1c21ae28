"""Description of this machine, as far as it affects speed."""

import os
import platform
import re
from pathlib import Path
from typing import Any


def describe_machine() -> dict[str, Any]:
    """Return the processor's name, the cores that this process may use, and the operating system."""
    return {"cpu": _cpu_name(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform(terse=True)}


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
