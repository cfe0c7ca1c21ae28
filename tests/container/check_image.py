"""Build the serving image and run it for real, locked down; exit status 0 if it serves right and stops cleanly.

`python tests/container/check_image.py` uses Docker where its engine answers. Elsewhere it uses the program that
CONTAINER_TOOL names, or ../shared/tools/container: `build TAG FOLDER`, `run ARGUMENTS` on the host's network, and
`podman ARGUMENTS` for the rest. Needs NumPy, for the golden cases.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "tests" / "serving" / "bundles" / "discrete"
TAG = "trpo-tf-serving"
NAME = f"trpo-tf-serving-check-{os.getpid()}"
MEMORY = "256m"
START_SECONDS = 30.0
STOP_SECONDS = 15.0
LOCKED_DOWN = (
    *("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
    *(f"--memory={MEMORY}", f"--memory-swap={MEMORY}"),
)


class CheckError(Exception):
    """The image is not what it should be."""


@dataclass(frozen=True)
class Engine:
    """How to call the container engine: command prefixes, and whether containers share the host's network."""

    build: tuple[str, ...]
    run: tuple[str, ...]
    other: tuple[str, ...]
    host_network: bool

    def __call__(self, *arguments: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return execute(*self.other, *arguments, check=check, timeout=timeout)


def find_engine() -> Engine:
    """Docker, or the tool that stands in for it. Raises `CheckError` where there is neither."""
    if shutil.which("docker") and execute("docker", "info", check=False).returncode == 0:
        return Engine(("docker", "build", "--tag"), ("docker", "run"), ("docker",), host_network=False)
    tool = os.environ.get("CONTAINER_TOOL", str(ROOT.parent / "shared" / "tools" / "container"))
    if not os.access(tool, os.X_OK):
        raise CheckError("there is no container engine: start Docker, or name another in CONTAINER_TOOL")
    return Engine((tool, "build"), (tool, "run"), (tool, "podman"), host_network=True)


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


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def start(engine: Engine, port: int) -> None:
    """Start the container in the background, with nothing allowed that it doesn't need."""
    network = () if engine.host_network else (f"--publish=127.0.0.1:{port}:{port}",)
    mount = f"--volume={BUNDLE}:/models:ro"
    execute(*engine.run, "--detach", f"--name={NAME}", *LOCKED_DOWN, *network, f"--env=PORT={port}", mount, TAG)


def request(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON answer of a GET, or of a POST with a body."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(url, data, timeout=5) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def wait_until_ready(engine: Engine, url: str) -> None:
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
            if engine("inspect", "--format={{.State.Running}}", NAME).stdout.strip() == "false":
                break
    log = engine("logs", NAME, check=False)
    raise CheckError(f"not ready after {waited:.0f} s; its log:\n{log.stdout}{log.stderr}")


def check_actions(url: str) -> int:
    """Ask for the action of every golden case, and return their number. Raises `CheckError` if one differs."""
    cases = np.load(BUNDLE / "golden.npz", allow_pickle=False)
    inputs = [
        {"name": name, "datatype": "FP32", "shape": array.shape, "data": array.ravel().tolist()}
        for name, array in (("obs", cases["obs"]), ("noise", cases["noise"]))
    ]
    answer = request(f"{url}/v2/models/discrete/infer", {"id": "golden", "inputs": inputs})
    if answer["id"] != "golden" or answer["outputs"][0]["data"] != cases["action"].tolist():
        raise CheckError(f"the actions differ from the golden ones: {answer}")
    return len(cases["action"])


def check_inside(engine: Engine) -> dict[str, str]:
    """Look around inside the container; the facts about its first process. Raises `CheckError`."""
    for module in ("tensorflow", "keras", "onnx", "gymnasium", "trpo_tf", "export"):
        done = engine("exec", NAME, "python", "-c", f"import {module}", check=False)
        expect(f"No module named '{module}'" in done.stderr, f"{module} is in the image")
    healthy = engine("exec", NAME, "python", "/app/serving/healthcheck.py", check=False)
    expect(healthy.returncode == 0, f"the health check fails: {healthy.stderr}")
    for folder in ("/app", "/opt/venv", "/models", "/var"):
        done = engine("exec", NAME, "python", "-c", f"open('{folder}/written', 'w')", check=False)
        expect("Error" in done.stderr, f"{folder} can be written to")
    lines = engine("exec", NAME, "cat", "/proc/1/status").stdout.splitlines()
    status = {key: value.strip() for key, value in (line.split(":", 1) for line in lines)}
    expect("0" not in status["Uid"].split(), "the server runs as root")
    expect(int(status["CapEff"], 16) == 0, f"it has capabilities: {status['CapEff']}")
    expect(status["NoNewPrivs"] == "1", "it may gain privileges")
    return status


def stop(engine: Engine) -> float:
    """Send SIGTERM and return the seconds that it took to end with status 0. Raises `CheckError`."""
    started = time.monotonic()
    engine("kill", "--signal=TERM", NAME)
    status = engine("wait", NAME, timeout=STOP_SECONDS).stdout.strip()
    expect(status == "0", f"after SIGTERM it ended with status {status}")
    return time.monotonic() - started


def expect(condition: bool, otherwise: str) -> None:
    """Raise `CheckError` unless the condition holds."""
    if not condition:
        raise CheckError(otherwise)


def check_image(engine: Engine, say: Callable[[str], None] = print) -> None:
    """Build, run, question and stop the image. Raises `CheckError`."""
    execute(*engine.build, TAG, str(ROOT))
    image = json.loads(engine("image", "inspect", TAG).stdout)[0]
    expect("Healthcheck" in str(image), "the image has no HEALTHCHECK")
    say(f"image size            {int(image['Size']) / 1e6:.0f} MB")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    try:
        started = time.monotonic()
        start(engine, port)
        wait_until_ready(engine, url)
        cases = check_actions(url)
        say(f"first answer after    {time.monotonic() - started:.2f} s")
        say(f"golden actions        {cases} right")
        status = check_inside(engine)
        say(f"user, memory          uid {status['Uid'].split()[0]}, {int(status['VmRSS'].split()[0]) / 1024:.0f} MiB")
        say(f"stopped by SIGTERM in {stop(engine):.1f} s, exit status 0")
    finally:
        engine("rm", "--force", "--volumes", NAME, check=False)


if __name__ == "__main__":
    try:
        check_image(find_engine())
    except CheckError as error:
        sys.exit(f"error: {error}")
