"""Ray on this machine, as a cluster of several nodes, which also starts where the machine is busy.

A node starts Ray's agents only where jobs are submitted, since they take as much CPU as many tests. Ray allows its
agents 15 seconds to say their ports, and then gives up (ray-project/ray#65983). A busy machine needs longer, so the
agents' ports are chosen here, and said for them.
"""

import contextlib
import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT
from tests.support.training.rollouts import pids_of
from trpo_tf.sampling.ray_processes import no_agents, no_autoscaler, no_dashboard

MARK = f"TRPO_TF_TESTS_OF={os.getpid()}"
"""In the environment of this process's cluster and its workers: other tests may have a cluster at the same time."""

_SECONDS = 900
os.environ["RAY_DASHBOARD_STARTUP_TIMEOUT_S"] = str(_SECONDS)  # read when Ray is imported
_AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")


class RayCluster:
    """A head without cores, which takes jobs if it is asked for that, and nodes with cores.

    Attributes:
        address: address of the head.
    """

    def __init__(self, home: Path, *, takes_jobs: bool = False) -> None:
        from ray.cluster_utils import Cluster

        self._home = home
        self._cluster = Cluster()
        with self._variables(), no_dashboard(), no_autoscaler(), contextlib.ExitStack() as stack:
            if not takes_jobs:
                stack.enter_context(no_agents())
            head = self._cluster.add_node(num_cpus=0, dashboard_port=_free_port(), include_log_monitor=False)
        if takes_jobs:  # the dashboard takes longer to start than all else
            with self._variables():
                head.start_api_server(include_dashboard=True, raise_on_failure=True)
        self._jobs = f"http://{head.webui_url}"
        self.address = self._cluster.address

    def add(self, cores: int = 2) -> Any:
        """Start a node, and return it."""
        with self._variables(), no_agents():
            return self._cluster.add_node(num_cpus=cores)

    def remove(self, node: Any) -> None:
        """Kill a node with all that runs on it."""
        self._cluster.remove_node(node, allow_graceful=False)

    def submit(self, command: str, **options: Any) -> tuple[Any, str]:
        """Submit a job, and return the client and the job's id."""
        from ray.job_submission import JobSubmissionClient

        client = JobSubmissionClient(self._jobs)
        deadline = time.monotonic() + _SECONDS
        while True:
            try:
                return client, client.submit_job(entrypoint=command, **options)
            except RuntimeError as error:  # the head's agent, which runs jobs, may still be importing
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    def shutdown(self) -> None:
        """Stop the nodes."""
        self._cluster.shutdown()

    @property
    def nodes(self) -> list[Any]:
        """The nodes with cores."""
        return list(self._cluster.worker_nodes)

    @contextlib.contextmanager
    def _variables(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(*MARK.split("="))
            patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
            patch.setenv("HOME", str(self._home))
            patch.setenv("PYTHONPATH", str(ROOT))
            _start_when_busy(patch)
            _load_jobs_alone(patch)
            yield


def _start_when_busy(patch: pytest.MonkeyPatch) -> None:
    """Have nodes that this process starts wait for none of their agents."""
    from ray._private.node import Node
    from ray._raylet import DASHBOARD_AGENT_LISTEN_PORT_NAME, persist_port  # type: ignore[attr-defined]

    start = Node.start_raylet

    def choose_and_start(node: Any, *arguments: Any, **options: Any) -> Any:
        for name in _AGENT_PORTS:
            setattr(node._ray_params, name, _free_port())
        # The raylet is told the other three, and looks for this one in a file.
        port = node._ray_params.dashboard_agent_listen_port
        persist_port(node._session_dir, node._node_id, DASHBOARD_AGENT_LISTEN_PORT_NAME, port)
        return start(node, *arguments, **options)

    patch.setattr(Node, "start_raylet", choose_and_start)
    patch.setenv("RAY_agent_register_timeout_ms", str(1000 * _SECONDS))
    patch.setenv("RAY_worker_register_timeout_seconds", str(_SECONDS))
    patch.setenv("RAY_worker_niceness", "0")  # 15 by default, which other tests leave next to nothing


def processes_marked(mark: str) -> list[int]:
    """Process ids of those that have `NAME=value` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # of a process that has just ended
            if mark in path.joinpath("environ").read_bytes().decode(errors="replace").split("\0"):
                found.append(int(path.name))
    return sorted(found)


def workers_of_cluster(pattern: str) -> list[int]:
    """Process ids of this process's cluster that match a pattern, in the order of their start."""
    marked = processes_marked(MARK)
    return [pid for pid in pids_of(pattern) if pid in marked]


def wait_for(condition: Callable[[], Any]) -> None:
    """Wait until the condition returns a true value."""
    deadline = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _load_jobs_alone(patch: pytest.MonkeyPatch) -> None:
    """Leave out the dashboard's modules that no test asks: each is a process that takes seconds to import."""
    from ray._private import services

    start = services.start_ray_process

    def start_less(command: Sequence[str], kind: str, *arguments: Any, **options: Any) -> Any:
        less = ["--modules-to-load=JobHead,NodeHead"] if kind == "dashboard" else []
        return start([*command, *less], kind, *arguments, **options)

    patch.setattr(services, "start_ray_process", start_less)


def _free_port() -> int:
    """A port that no other process is given by chance before an agent listens there, seconds later."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)  # below Linux's ephemeral ports
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port
