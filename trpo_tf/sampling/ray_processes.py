"""Start Ray's nodes without those of its processes that a run does not need.

Ray has no options for this. The names that are replaced are those of Ray 2.60; without one of them all processes start.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

_WAIT_FOR_END = ["sh", "-c", "read line"]
"""In place of an agent: a process that ends as soon as Ray's node closes the pipe to it, in whatever way it ends."""
_NO_PORT = -1
"""What an agent says that does not listen."""


@contextlib.contextmanager
def no_dashboard() -> Iterator[None]:
    """Have Ray start no dashboard process in this block.

    `include_dashboard=False` does not suffice: Ray then still starts a process that only reports usage. It asks the
    metadata servers of clouds where it runs, even if usage reports are switched off.
    """
    from ray._private import services

    with _replaced(services, "start_api_server", lambda _: lambda *_, **__: ("", None)):
        yield


@contextlib.contextmanager
def no_agents() -> Iterator[None]:
    """Have nodes start no agents, which serve dashboards, submitted jobs and runtime environments.

    An agent takes a second of CPU to start and 100 MB. It also outlives a node that is killed, since it looks for the
    cluster for another minute. A node insists on its agents, so two small processes wait in their place.
    """
    from ray._private import ray_constants, services
    from ray._private.node import Node

    agents = ray_constants.PROCESS_TYPE_DASHBOARD_AGENT, ray_constants.PROCESS_TYPE_RUNTIME_ENV_AGENT
    os.environ["RAY_enable_pipe_based_agent_to_parent_health_check"] = "1"  # noqa: SIM112  # as Ray spells it

    def command(build: Callable[..., list[str]]) -> Callable[..., list[str]]:
        return lambda component, *arguments, **options: (
            _WAIT_FOR_END if component in agents else build(component, *arguments, **options)
        )

    def start(start_raylet: Callable[..., Any]) -> Callable[..., Any]:
        def say_ports_and_start(node: Any, *arguments: Any, **options: Any) -> Any:
            _say_ports(node)
            return start_raylet(node, *arguments, **options)

        return say_ports_and_start

    with (
        _replaced(services, "_build_python_executable_command_memory_profileable", command),
        _replaced(Node, "start_raylet", start),
    ):
        yield


@contextlib.contextmanager
def no_runtime_environment() -> Iterator[None]:
    """Have this driver ask for no runtime environment, which an agent would make.

    Ray would ask for that of `uv run`, of a hook, or of the submitted job that this process is part of. Workers on this
    machine have the driver's without that.
    """
    from ray._private import worker
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    of_job = os.environ.pop(RAY_JOB_CONFIG_JSON_ENV_VAR, None)
    try:
        with _replaced(worker, "_maybe_modify_runtime_env", lambda _: lambda environment, _: environment):
            yield
    finally:
        if of_job is not None:
            os.environ[RAY_JOB_CONFIG_JSON_ENV_VAR] = of_job


@contextlib.contextmanager
def no_autoscaler() -> Iterator[None]:
    """Have a head start no autoscaler's monitor."""
    from ray._private.node import Node

    with _replaced(Node, "start_monitor", lambda _: lambda _: None):
        yield


def _say_ports(node: Any) -> None:
    """Write the ports of a node's agents, for which it waits, where the agents would."""
    import ray._raylet

    internal: Any = ray._raylet
    for name in ("METRICS_AGENT", "METRICS_EXPORT", "DASHBOARD_AGENT_LISTEN", "RUNTIME_ENV_AGENT"):
        internal.persist_port(node._session_dir, node._node_id, getattr(internal, f"{name}_PORT_NAME"), _NO_PORT)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, replacement: Callable[[Any], Any]) -> Iterator[None]:
    """Replace an attribute by what `replacement` makes of it."""
    present = getattr(owner, name)
    setattr(owner, name, replacement(present))
    try:
        yield
    finally:
        setattr(owner, name, present)
