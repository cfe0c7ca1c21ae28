"""One run: everything at once against one server, and then its end under load."""

import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.container.chaos.clients.crowd import Crowd
from tests.container.chaos.faults.processes import REPLACED_SECONDS, Attacker, cpu_seconds
from tests.container.chaos.faults.publishing import Publisher
from tests.container.chaos.faults.rotation import Secrets, rotate
from tests.container.chaos.report import Course, summary
from tests.container.chaos.server import TLS_MEMORY, Running, as_process, in_container
from tests.container.chaos.target import Target
from tests.container.engine import MEMORY, CheckError, free_port

START_SECONDS = 60.0
ATTACKS = 20
"""How many pauses between blows to workers a run has room for: fewer blows, as each takes its time."""

SHORTEST_PAUSE, ROTATE_SECONDS, LOOK_SECONDS = 2.0, 5.0, 0.5
DRAIN_SECONDS = 10.0
"""How long the server may take to end, as by default; half of a shorter run."""


def chaos(folder: Path, seconds: float, *, has_tls: bool, is_local: bool) -> tuple[dict[str, Any], Running]:
    """What was found, and the server that has ended. Raises `CheckError` if the run itself fails."""
    publisher = Publisher(folder / "models", folder / "stock")
    publisher.prepare(seconds)
    secrets = Secrets(folder / "secrets", has_tls)
    secrets.prepare()
    authority = secrets.folder / "authority.pem" if has_tls else None
    target = Target(free_port(), free_port(), secrets.steady, authority, publisher.answers)
    contained = partial(in_container, memory=TLS_MEMORY if has_tls else MEMORY)
    serve, seen_as = (as_process, str(secrets.folder)) if is_local else (contained, "/secrets")
    options = (*secrets.options(seen_as), "--drain", str(min(DRAIN_SECONDS, seconds / 2)))
    with serve(publisher.folder, secrets.folder, target.port, target.grpc_port, *options) as running:
        wait_until_ready(target, running)
        before, began = cpu_seconds(running.pid), time.monotonic()
        crowd, attacker = Crowd(target), Attacker(running.pid, max(seconds / ATTACKS, SHORTEST_PAUSE))
        with (
            in_thread(publisher.run),
            in_thread(lambda is_over: rotate(secrets, target, running.pid, min(ROTATE_SECONDS, seconds / 2), is_over)),
            in_thread(attacker.run),
        ):
            memory = watch(running, seconds)
            cpu_share = (cpu_seconds(running.pid) - before) / (time.monotonic() - began)
        died_early = running.process.poll() is not None
        crowd.end_first()
        running.look()
        stopped_at = time.monotonic()
        status = running.process.returncode if died_early else running.end()
        crowd.end_rest()
    probed = crowd.found.pop("probes")
    course = Course(began, stopped_at, memory, attacker.blows, status, died_early, running.peak, running.oom_kills)
    return summary(crowd.found, probed, course) | {
        "transport": "TLS" if has_tls else "plain",
        "published": dict(publisher.published),
        "rotations": dict(secrets.rotations),
        "rotation_faults": secrets.faults,
        "cpu_share": round(cpu_share, 2),
        "log_megabytes": round(running.bytes_logged / 1e6, 1),
    }, running


def wait_until_ready(target: Target, running: Running) -> None:
    """Raises `CheckError` if the server is not ready in time."""
    url = f"{'https' if target.authority else 'http'}://127.0.0.1:{target.port}/v2/health/ready"
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and running.process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5, context=target.context()).close()
            return
        except OSError:
            time.sleep(0.1)
    raise CheckError(f"the server is not ready: {list(running.lines)}")


@contextmanager
def in_thread(run: Callable[[threading.Event], None]) -> Iterator[None]:
    """Have something run beside, that is told when it is over; then wait until it has come to its end."""
    is_over = threading.Event()
    thread = threading.Thread(target=run, args=(is_over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(3 * REPLACED_SECONDS)


def watch(running: Running, seconds: float) -> list[int]:
    """Memory, in bytes, until the time is over or the server has ended."""
    memory, began = [], time.monotonic()
    while time.monotonic() - began < seconds and running.process.poll() is None:
        memory.append(running.memory())
        running.look()
        time.sleep(LOOK_SECONDS)
    return memory
