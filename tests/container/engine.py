"""The container engine: Docker, or a program that stands in for it, called the same way; and what the checks share."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MEMORY = "256m"
START_SECONDS = 30.0
LOCKED_DOWN = (
    *("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
    *(f"--memory={MEMORY}", f"--memory-swap={MEMORY}", "--cpus=1"),
)


class CheckError(Exception):
    """The image is not what it should be."""


@dataclass(frozen=True)
class Engine:
    """How to call the container engine: command prefixes. Containers are on the host's network."""

    build: tuple[str, ...]
    run: tuple[str, ...]
    other: tuple[str, ...]

    def __call__(self, *arguments: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return execute(*self.other, *arguments, check=check, timeout=timeout)

    def inspect_image(self, tag: str) -> dict[str, Any]:
        """What the engine knows of an image."""
        (image,) = json.loads(self("image", "inspect", tag).stdout)
        return dict(image)


def find_engine() -> Engine:
    """Docker, or the tool that stands in for it. Raises `CheckError` where there is neither."""
    if shutil.which("docker") and execute("docker", "info", check=False).returncode == 0:
        return Engine(("docker", "build", "--tag"), ("docker", "run", "--network=host"), ("docker",))
    tool = os.environ.get("CONTAINER_TOOL", str(ROOT.parent / "shared" / "tools" / "container"))
    if not os.access(tool, os.X_OK):
        raise CheckError("there is no container engine: start Docker, or name another in CONTAINER_TOOL")
    return Engine((tool, "build"), (tool, "run"), (tool, "podman"))


def execute(*command: str, check: bool = True, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command. Raises `CheckError` if it takes too long, or must succeed and doesn't."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=timeout, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise CheckError(f"`{' '.join(command)}` was not done after {timeout:.0f} s") from None
    if check and done.returncode != 0:
        raise CheckError(f"`{' '.join(command)}` failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done


def expect(condition: bool, otherwise: str) -> None:
    """Raise `CheckError` unless the condition holds."""
    if not condition:
        raise CheckError(otherwise)


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def running(
    engine: Engine, tag: str, models: Path, port: int, *options: str, on: tuple[str, ...] = ()
) -> Iterator[str]:
    """A container that serves `models` with nothing allowed that it doesn't need; its name. Removed in the end.

    `options` are the server's, `on` more of the engine's.
    """
    name = f"trpo-tf-serving-check-{os.getpid()}-{port}"
    mount = f"--volume={models}:/models:ro"
    try:
        execute(
            *engine.run, "--detach", f"--name={name}", *LOCKED_DOWN, *on, f"--env=PORT={port}", mount, tag, *options
        )
        yield name
    finally:
        engine("rm", "--force", "--volumes", name, check=False)


def request(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON answer of a GET, or of a POST with a body."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(url, data, timeout=5) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def wait_until_ready(engine: Engine, name: str, url: str) -> None:
    """Poll the readiness route. Raises `CheckError` with the container's log if it takes too long."""
    started = time.monotonic()
    look = 1.0
    while (waited := time.monotonic() - started) < START_SECONDS:
        try:
            request(f"{url}/v2/health/ready")
        except OSError:
            time.sleep(0.02)
        else:
            return
        if waited > look:
            look += 1
            if engine("inspect", "--format={{.State.Running}}", name).stdout.strip() == "false":
                break
    log = engine("logs", name, check=False)
    raise CheckError(f"not ready after {waited:.0f} s; its log:\n{log.stdout}{log.stderr}")


def process_status(engine: Engine, name: str) -> dict[str, str]:
    """The container's first process, as /proc has it."""
    lines = engine("exec", name, "cat", "/proc/1/status").stdout.splitlines()
    return {key: value.strip() for key, value in (line.split(":", 1) for line in lines)}
