"""Write tests/slow.txt from the durations that pytest printed: `python tests/slow.py LOG`.

LOG is what `make test` printed with PYTEST_ADDOPTS='--durations=0 --durations-min=0.005'.
A test function is slow if its calls and setups take together more than `SECONDS`. `make test-fast` leaves it out.
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


if __name__ == "__main__":
    Path(__file__).with_name("slow.txt").write_text("\n".join(slow_tests(Path(sys.argv[1]).read_text())) + "\n")
