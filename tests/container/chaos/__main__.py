"""Does the server hold, and answer rightly, when everything happens at once?

`python -m tests.container.chaos [--seconds 120] [--tls] [--local] [--json FILE]` serves from the container
(256 MB, one CPU, two workers), or with --local from a process of this machine's. For that long good clients ask at full
load, by HTTP and gRPC, and check every answer, while workers are killed and stopped, versions are published, good ones
and others, keys and certificates replaced, and rude, silent and amplifying clients do their worst. Prints a table; exit
status 1 with one line if an answer was wrong, or anything else is not as it should be. Needs root, to see whose
connections a killed worker had.

With --kept the server is one process that keeps sequences. It is killed and started again while clients play episodes
and versions are published; prints JSON.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from tests.container.chaos.clients.crowd import CORE
from tests.container.chaos.kept_run import kept_chaos, kept_complaints
from tests.container.chaos.report import complaints, table
from tests.container.chaos.run import chaos
from tests.container.engine import CheckError


def main() -> None:
    """Run, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--tls", action="store_true", help="everything over TLS")
    parser.add_argument("--local", action="store_true", help="a process of this machine's, instead of the container")
    parser.add_argument("--kept", action="store_true", help="sequences whose state one process keeps")
    parser.add_argument("--json", type=Path, help="write what was found here")
    parser.add_argument("--log", type=Path, help="write the server's last lines on stderr here, but requests'")
    given = parser.parse_args()
    os.sched_setaffinity(0, {CORE})
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)  # for the image's user
        try:
            play = kept_chaos if given.kept else chaos
            found, running = play(Path(name), given.seconds, has_tls=given.tls, is_local=given.local)
        except CheckError as error:
            sys.exit(f"error: {error}")
    print(json.dumps(found, indent=1) if given.kept else table(found))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    if given.log:
        given.log.write_text("\n".join(running.lines) + "\n")
    if wrong := kept_complaints(found) if given.kept else complaints(found):
        sys.exit(f"error: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
