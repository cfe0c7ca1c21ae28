"""What benchmarks ask of other processes, and each of itself; for any interpreter, so with nothing but Python's own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any


def ask(command: list[str]) -> Any:
    """The JSON on the last line that a command prints; if it fails, so does this process, saying why."""
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command[:3])} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def resident_megabytes(pid: int | str = "self") -> float:
    """A process's memory that is in RAM now, of 10^6 bytes each; by default of this process."""
    return _status("VmRSS", pid)


def peak_megabytes() -> float:
    """The most that ever was; not `getrusage`'s, which begins with that of the process that started this one."""
    return _status("VmHWM")


def _status(name: str, pid: int | str = "self") -> float:
    (kibibytes,) = re.findall(rf"^{name}:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(kibibytes) * 1024 / 1e6
