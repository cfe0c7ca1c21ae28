"""A run against one process that keeps sequences: it is killed and started again, and versions are published."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.container.chaos.clients import kept
from tests.container.chaos.clients.crowd import Crowd
from tests.container.chaos.clients.tally import Loss, Tally
from tests.container.chaos.faults.models import Action, make_recurrent_version
from tests.container.chaos.faults.rotation import Secrets
from tests.container.chaos.run import in_thread, wait_until_ready
from tests.container.chaos.server import TLS_MEMORY, Running, as_process, in_container
from tests.container.chaos.target import KEPT, Target
from tests.container.engine import MEMORY, free_port

OPTIONS = (
    *("--workers", "1", "--batching", "--max-sequences", str(kept.MOST_SEQUENCES)),
    *("--sequence-idle", str(kept.IDLE_SECONDS)),
)
PUBLISH_SECONDS, KILLS, SHORTEST_PAUSE = 1.0, 6, 2.0
LATE_SECONDS = 1.0
"""After a kill, in which a client may still find out that its request is lost."""


@dataclass
class Restarter:
    """Kills the server every `period` seconds and starts another; `kills` has when, and when the next was ready."""

    start: Callable[[], AbstractContextManager[Running]]
    target: Target
    period: float
    kills: list[tuple[float, float]] = field(default_factory=list)
    died_early: bool = False

    def __enter__(self) -> "Restarter":
        self._stack = ExitStack()
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, is_over: threading.Event) -> None:
        """Kill and start until it is over."""
        while not is_over.wait(self.period):
            self.died_early |= self.running.process.poll() is not None
            when = time.monotonic()
            os.kill(self.running.pid, signal.SIGKILL)
            self._stack.close()
            self._begin()
            self.kills.append((when, time.monotonic()))

    def _begin(self) -> None:
        self.running = self._stack.enter_context(self.start())
        wait_until_ready(self.target, self.running)


@dataclass
class Publisher:
    """A repository below `folder` of one model, whose versions have weights of their own."""

    folder: Path
    stock: Path
    answers: dict[str, list[Action]] = field(default_factory=dict)
    published: int = 0

    def prepare(self, seconds: float) -> None:
        """Make all versions that will be needed, and publish the first."""
        for version in range(1, int(2 * seconds) + 30):
            self.answers[str(version)] = make_recurrent_version(KEPT, version, self.stock / str(version))
        (self.folder / KEPT).mkdir(parents=True)
        self._publish()

    def run(self, is_over: threading.Event) -> None:
        """Publish the next version once a second, and remove all but the latest two."""
        while not is_over.wait(PUBLISH_SECONDS):
            self._publish()

    def _publish(self) -> None:
        self.published += 1
        version = self.published
        (self.stock / str(version)).rename(self.folder / KEPT / str(version))
        shutil.rmtree(self.folder / KEPT / str(version - 2), ignore_errors=True)


def kept_chaos(folder: Path, seconds: float, *, has_tls: bool, is_local: bool) -> tuple[dict[str, Any], Running]:
    """What was found, and the last server. Raises `CheckError` if the run itself fails."""
    publisher, secrets = Publisher(folder / "models", folder / "stock"), Secrets(folder / "secrets", has_tls)
    publisher.prepare(seconds)
    secrets.prepare()
    authority = secrets.folder / "authority.pem" if has_tls else None
    target = Target(free_port(), free_port(), secrets.steady, authority, {KEPT: publisher.answers})
    contained = partial(in_container, memory=TLS_MEMORY if has_tls else MEMORY)
    serve, seen_as = (as_process, str(secrets.folder)) if is_local else (contained, "/secrets")
    options = (*OPTIONS, *secrets.options(seen_as))
    start = partial(serve, publisher.folder, secrets.folder, target.port, target.grpc_port, *options)
    began = time.monotonic()
    with Restarter(start, target, max(seconds / KILLS, SHORTEST_PAUSE)) as restarter:
        crowd = Crowd(target, (), (kept,))
        with in_thread(publisher.run), in_thread(restarter.run):
            time.sleep(seconds)
        restarter.died_early |= restarter.running.process.poll() is not None
        stopped_at = time.monotonic()
        status = restarter.running.end()
        crowd.end_rest()
    tally = crowd.found["kept"]
    return _summary(tally, restarter, began, stopped_at) | {
        "published": publisher.published,
        "status": status,
    }, restarter.running


def _summary(tally: Tally, restarter: Restarter, began: float, stopped_at: float) -> dict[str, Any]:
    kills = restarter.kills
    unexplained = [gap.reason for gap in tally.gone if not any(gap.since <= when <= gap.until for when, _ in kills)]
    clients: dict[str, dict[str, int]] = {}
    for (kind, outcome), count in sorted(tally.outcomes.items()):
        clients.setdefault(kind, {})[outcome] = count

    def during_a_kill(loss: Loss) -> bool:
        return any(when <= loss.when <= ready + LATE_SECONDS for when, ready in kills)

    return {
        "seconds": round(stopped_at - began, 1),
        "clients": clients,
        "right": sum(found.get("right", 0) for found in clients.values()),
        "gone": len(tally.gone),
        "gone_unexplained": unexplained,
        "wrong": sum(found.get("wrong", 0) for found in clients.values()),
        "wrong_messages": tally.wrong,
        "lost": len(tally.lost),
        "lost_elsewhere": [
            f"{loss.reason} ({loss.when - began:.1f} s)" for loss in tally.lost if not during_a_kill(loss)
        ],
        "refused": [
            f"{loss.reason} ({loss.when - began:.1f} s)"
            for loss in tally.refused
            if loss.when < stopped_at and not during_a_kill(loss)
        ],
        "kills": len(kills),
        "down_seconds": [round(ready - when, 2) for when, ready in kills],
        "died_early": restarter.died_early,
    }


def kept_complaints(found: dict[str, Any]) -> list[str]:
    """What is wrong, if anything."""
    checks = {
        "the server ended before it was told to": found["died_early"],
        f"{found['wrong']} answers were wrong: {found['wrong_messages'][:1]}": found["wrong"],
        f"sequences were gone though no server was killed: {found['gone_unexplained'][:3]}": found["gone_unexplained"],
        f"requests were lost though no server was killed: {found['lost_elsewhere'][:3]}": found["lost_elsewhere"],
        f"connections were refused though a server was there: {found['refused'][:1]}": found["refused"],
        "no client was told that its sequence was gone": found["kills"] and not found["gone"],
        f"after SIGTERM it ended with status {found['status']}": found["status"] != 0,
    }
    return [text for text, is_wrong in checks.items() if is_wrong]
