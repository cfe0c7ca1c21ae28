"""Write tests/slow.txt from the durations that pytest printed: `python tests/slow.py LOG`.

LOG is what `make test` printed with PYTEST_ADDOPTS='--durations=0 --durations-min=0.005'.
A test function is slow if its calls and setups take together more than `SECONDS`. `make test-fast` leaves it out.

Lines that name a fixture are kept. They are written by hand, for a fixture of a file that takes longer than `SECONDS`:
in a full run its first test pays for it, but without that one another would. So all that use it are slow.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

SECONDS = 0.5
"""Few enough that all others, 2,500 and more, take less than two minutes on two cores."""

_LINE = re.compile(r"^([\d.]+)s (?:call|setup|teardown) +(tests/\S+?\.py)::(?:\w+::)*(\w+)", re.M)


def slow_tests(log: str) -> list[str]:
    """Return the ids of the slow test functions, without their parameters, in order."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for took, file, function in _LINE.findall(log):
        seconds[f"{file}::{function}"] += float(took)
    return sorted(test for test, total in seconds.items() if total > SECONDS)


def fixtures(listed: str) -> list[str]:
    """Return the lines that name a fixture."""
    return [line for line in listed.split() if not line.partition("::")[2].startswith("test_")]


if __name__ == "__main__":
    file = Path(__file__).with_name("slow.txt")
    lines = [*slow_tests(Path(sys.argv[1]).read_text()), *fixtures(file.read_text())]
    file.write_text("\n".join(sorted(lines)) + "\n")
