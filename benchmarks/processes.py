"""Run other processes and measure memory. Any interpreter can import this, so it uses the standard library alone."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any


def ask(command: list[str]) -> Any:
    """Return the JSON on the last line that a command prints. If it fails, exit with its error."""
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command[:3])} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def resident_megabytes(pid: int | str = "self") -> float:
    """Return the resident memory of a process, by default this one, in units of 10^6 bytes."""
    return _status("VmRSS", pid)


def peak_megabytes() -> float:
    """Return this process's peak resident memory. `getrusage` would include that of the process that started it."""
    return _status("VmHWM")


def _status(name: str, pid: int | str = "self") -> float:
    (kibibytes,) = re.findall(rf"^{name}:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(kibibytes) * 1024 / 1e6
