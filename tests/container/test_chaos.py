"""A short run of what `make chaos` runs long, with a process of this machine's instead of the container."""

import json
import subprocess
import sys

import pytest

from trpo_tf import serving

ROOT = serving.__path__[0].removesuffix("/trpo_tf/serving")


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--tls",)], ids=["plain", "TLS"])
def test_a_short_run(tmp_path, options):
    """How fast it is depends on what else this machine does, so that only what must always hold is held here."""
    found = _found(tmp_path, *options)
    assert found["metrics"]["falls"] == []
    assert found["right"] > 500
    assert all(found["clients"][kind]["right"] > 0 for kind in ("episodes", "gRPC streams"))
    assert found["blows"]["killed"] >= 1
    assert found["published"]["good"] >= 3
    assert found["rotations"]["new files"] >= 1


@pytest.mark.slow
def test_sequences_that_a_server_keeps(tmp_path):
    """A killed server takes its sequences along, and the clients are told; nothing else ends one."""
    found = _found(tmp_path, "--kept")
    assert found["gone_unexplained"] == []
    assert found["kills"] >= 1
    assert found["gone"] >= 1
    assert found["published"] >= 3
    assert all(found["clients"][kind]["right"] > 20 for kind in ("kept, HTTP", "kept, gRPC", "kept, streams"))


def _found(folder, *options):
    """What a run found, without an answer that is wrong or lost."""
    found_file = folder / "found.json"
    command = [sys.executable, "-m", "tests.container.chaos", "--local", "--seconds", "5", "--json", str(found_file)]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert found_file.exists(), done.stderr
    found = json.loads(found_file.read_text())
    assert found["wrong"] == 0, found["wrong_messages"]
    assert found["lost_elsewhere"] == []
    assert (found["died_early"], found["status"]) == (False, 0), done.stderr
    return found
