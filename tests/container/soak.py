"""Full load for a while, and a new version of the model in the repository every second: does anything fail, or grow?

`python tests/container/soak.py [--minutes 10] [--local] [--json FILE]` serves from the container, or with
--local from a process of this machine's, on one core while the clients have another. Prints a table; exit status 1 if a
request failed, few versions were seen, or memory grew by more than MOST_GROWTH after the first quarter.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine import ROOT, CheckError, execute, find_engine, free_port, process_status, request, running

BUNDLE = ROOT / "tests" / "serving" / "bundles" / "discrete"
MODEL = "discrete"
TAG = "trpo-tf-serving"
CONNECTIONS = 16
KEPT = 3
"""Versions in the repository at a time."""

MOST_GROWTH = 0.05
"""Of resident memory, as a share: from its median in the second quarter of the time to that in the last."""


def add_version(repository: Path, version: int) -> None:
    """Put a version of the model into the repository, whole at once, and remove the one that is too old."""
    aside = repository.parent / f"new-{version}"
    shutil.copytree(BUNDLE, aside)
    model = repository / MODEL
    model.mkdir(exist_ok=True)
    aside.rename(model / str(version))
    shutil.rmtree(model / str(version - KEPT), ignore_errors=True)


@contextmanager
def local_server(repository: Path, port: int) -> Iterator[Callable[[], int]]:
    """A server process on core 0; how to read its resident memory in KiB."""
    command = [sys.executable, "-m", "trpo_tf", "serve", str(repository), "--port", str(port), "--poll", "0.2"]
    environment = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT)), "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment) as server:
        try:
            os.sched_setaffinity(server.pid, {0})
            yield lambda: _resident(dict(line.split(":", 1) for line in _lines(f"/proc/{server.pid}/status")))
        finally:
            server.terminate()


@contextmanager
def container_server(repository: Path, port: int) -> Iterator[Callable[[], int]]:
    """The same in the image, locked down."""
    engine = find_engine()
    execute(*engine.build, TAG, str(ROOT))
    with running(engine, TAG, repository, port, "--poll", "0.2", on=("--cpuset-cpus=0",)) as name:
        yield lambda: _resident(process_status(engine, name))


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _resident(status: dict[str, str]) -> int:
    return int(status["VmRSS"].split()[0])


def wait_until_ready(port: int) -> None:
    """Raises `CheckError` if the server is not ready in time."""
    for _ in range(600):
        try:
            request(f"http://127.0.0.1:{port}/v2/health/ready")
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise CheckError("the server is not ready after 60 s")


def soak(repository: Path, port: int, resident: Callable[[], int], seconds: float) -> dict[str, Any]:
    """Ask and add versions until the time is over; what happened."""
    clients = [sys.executable, str(Path(__file__).with_name("traffic.py")), str(port), MODEL, "--cpu", "1"]
    with subprocess.Popen(
        [*clients, "--connections", str(CONNECTIONS), "--seconds", str(seconds)], stdout=subprocess.PIPE, text=True
    ) as asking:
        output: list[str] = []
        reader = threading.Thread(target=lambda: output.append(asking.stdout.read() if asking.stdout else ""))
        reader.start()
        memory, version, started = [], 1, time.monotonic()
        while asking.poll() is None:
            version += 1
            add_version(repository, version)
            memory.append(resident())
            time.sleep(max(0.0, started + version - 1 - time.monotonic()))
        reader.join()
    seen = json.loads(output[0].splitlines()[-1])
    versions = sorted(int(name) for name in seen.pop("versions"))
    quarter = max(len(memory) // 4, 1)
    early, late = (
        sorted(part)[len(part) // 2] for part in (memory[quarter : 2 * quarter] or memory, memory[-quarter:])
    )
    return {
        **seen,
        "seconds": seconds,
        "requests_per_second": seen["answered"] / seconds,
        "versions_added": version,
        "versions_seen": len(versions),
        "memory_kib": memory,
        "memory_growth": late / early - 1,
    }


def complaint(found: dict[str, Any]) -> str | None:
    """What is wrong, if anything."""
    if found["failed"]:
        return f"{found['failed']} requests failed: {found['failures']}"
    if found["versions_seen"] < found["versions_added"] // 2:
        return f"of {found['versions_added']} versions only {found['versions_seen']} answered"
    if found["memory_growth"] > MOST_GROWTH:
        return f"memory grew by {found['memory_growth']:.1%}"
    return None


def table(found: dict[str, Any]) -> str:
    """What happened, for people."""
    memory = found["memory_kib"]
    rows = {
        "requests answered": f"{found['answered']} in {found['seconds']:.0f} s",
        "requests failed": str(found["failed"]),
        "p50, p99": f"{found['p50_us']}, {found['p99_us']} us on {CONNECTIONS} connections",
        "versions": f"{found['versions_added']} added, {found['versions_seen']} answered",
        "resident MiB": " ".join(f"{memory[i * (len(memory) - 1) // 9] / 1024:.1f}" for i in range(10)),
        "memory growth": f"{found['memory_growth']:+.1%}",
    }
    return "\n".join(f"{name:<20}{value}" for name, value in rows.items())


def main() -> None:
    """Soak, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--local", action="store_true", help="a process of this machine's, instead of the container")
    parser.add_argument("--json", type=Path, help="write what happened here")
    arguments = parser.parse_args()
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        repository.mkdir()
        for path in (Path(folder), repository):
            path.chmod(0o755)  # for the image's user
        add_version(repository, 1)
        serve = local_server if arguments.local else container_server
        try:
            with serve(repository, port) as resident:
                wait_until_ready(port)
                found = soak(repository, port, resident, 60 * arguments.minutes)
        except CheckError as error:
            sys.exit(f"error: {error}")
    print(table(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(complaint(found))


if __name__ == "__main__":
    main()
