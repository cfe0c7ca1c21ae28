"""Commands whose standard streams are closed, as some supervisors start them."""

import subprocess
import sys

from tests.support.paths import ROOT


def test_a_command_runs_with_closed_streams(tmp_path):
    """A file that the program opens must not take the place of a stream, where logs would be written into it."""
    program = (
        "import os, sys; sys.argv[1:] = ['--version']; from trpo_tf.__main__ import main; main(); "
        f"shown = open({str(tmp_path / 'opened')!r}, 'w'); shown.write(str(shown.fileno())); sys.stderr.write('log')"
    )
    done = subprocess.run(f'"{sys.executable}" -c "{program}" <&- >&- 2>&-', shell=True, cwd=ROOT, check=False)
    assert done.returncode == 0
    assert int((tmp_path / "opened").read_text()) > 2
