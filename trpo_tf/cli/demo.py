"""Demonstrate the whole workflow: train, export, verify, serve and query, with each step checked."""

import contextlib
import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trpo_tf.config.settings import load_preset
from trpo_tf.envs.make import make_env
from trpo_tf.errors import UserError
from trpo_tf.evaluation.evaluate import FIRST_SEED, evaluate, play
from trpo_tf.export.targets.saved_model import SAVED_MODEL
from trpo_tf.exporting.run_bundle import export_run
from trpo_tf.runs.folder import Run
from trpo_tf.serving import Manifest, Policy, load
from trpo_tf.serving.bundle.files import MODEL_FILE
from trpo_tf.serving.verify import verify
from trpo_tf.support.child_process import end_with_parent
from trpo_tf.training.train import train

ENV_ID = "CartPole-v1"
GOAL = 475.0

_IN_PROCESS_CALLS = 2000
_SERVER_SECONDS = 20.0


def demo(out: Path | None) -> None:
    """Run the demonstration in `out`, or in a temporary folder, and print a table.

    Raises `UserError` if a step fails its check.
    """
    with contextlib.ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trpo-tf-demo-")))
        _announce(f"training on {ENV_ID}")
        run = train(load_preset(ENV_ID, ENV_ID), folder / "run")
        _announce("exporting, and comparing every format with Keras")
        bundle = folder / "bundle"
        manifest = export_run(run, bundle)
        _announce("verifying the bundle as a device would")
        verify(bundle)
        policy = load(bundle)
        exported = evaluate(policy, ENV_ID)
        in_process = _latency_in_process(policy)
        _announce("serving the bundle, and playing an episode against the server")
        with _server(bundle) as port:
            served, over_http = _play_over_http(port, manifest)
        _print_table(run, manifest, exported.mean_return, in_process, served, over_http)
    if exported.mean_return < GOAL:
        raise UserError(f"the exported policy reached {exported.mean_return:.1f}, not {GOAL:.0f}; try another seed")


def _announce(step: str) -> None:
    print(f"... {step}", file=sys.stderr, flush=True)  # noqa: T201


def _latency_in_process(policy: Policy) -> list[float]:
    (spec,) = policy.manifest.observation
    observation = np.zeros(spec.shape, spec.dtype)
    return [_seconds(lambda: policy.act(observation)) for _ in range(_IN_PROCESS_CALLS)]


def _seconds(call: Any) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@contextlib.contextmanager
def _server(bundle: Path) -> Iterator[int]:
    """Start a server process on a free port, and yield the port; it ends when this process ends in any way."""
    command = [sys.executable, "-m", "trpo_tf", "serve", str(bundle), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=end_with_parent)
    try:
        assert process.stderr is not None
        first_line = process.stderr.readline()
        port = first_line.strip().rsplit(":", 1)[-1]
        if not port.isdigit():
            raise UserError(f"the server did not start: {first_line.strip() or 'it said nothing'}")
        yield int(port)
    finally:
        process.terminate()
        try:
            process.wait(_SERVER_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _play_over_http(port: int, manifest: Manifest) -> tuple[float, list[float]]:
    """Play one episode over HTTP; return its return, and the seconds that each request took."""
    seconds: list[float] = []

    def act(observation: Any) -> int:
        started = time.perf_counter()
        action = _ask(connection, manifest, observation)
        seconds.append(time.perf_counter() - started)
        return action

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SERVER_SECONDS)
    with contextlib.closing(make_env(ENV_ID)) as env, contextlib.closing(connection):
        total = sum(step.reward for step in play(act, env, FIRST_SEED))
    return total, seconds


def _ask(connection: http.client.HTTPConnection, manifest: Manifest, observation: Any) -> int:
    tensor = {"name": "obs", "datatype": "FP32", "shape": [1, *observation.shape], "data": observation.tolist()}
    connection.request("POST", f"/v2/models/{manifest.name}/infer", json.dumps({"inputs": [tensor]}))
    response = connection.getresponse()
    answer = json.loads(response.read())
    if response.status != http.client.OK:
        raise UserError(f"the server answered {response.status}: {answer}")
    return int(answer["outputs"][0]["data"][0])


def _print_table(
    run: Run, manifest: Manifest, exported: float, in_process: list[float], served: float, over_http: list[float]
) -> None:
    summary = run.summary
    saved_model = sum(manifest.files[name].size for name in SAVED_MODEL.files(manifest))
    largest = max(figures["max_difference"] for figures in manifest.parity.values())
    for name, value in (
        ("mean return before training", f"{summary['untrained']['mean_return']:.1f}"),
        ("mean return after training", f"{summary['trained']['mean_return']:.1f}"),
        ("environment steps", f"{summary['steps']:,}"),
        ("steps per second, compiling included", f"{summary['steps_per_second']:,.0f}"),
        ("policy.onnx", f"{manifest.files[MODEL_FILE].size:,} bytes"),
        ("saved_model/", f"{saved_model:,} bytes"),
        ("largest difference, Keras to exported", f"{largest:.1e}"),
        ("mean return of the exported policy", f"{exported:.1f}"),
        ("return of an episode over HTTP", f"{served:.1f}"),
        ("latency in process, p50 / p99", _percentiles(in_process)),
        ("latency over HTTP, p50 / p99", _percentiles(over_http)),
    ):
        print(f"{name:<40}{value:>22}")  # noqa: T201


def _percentiles(seconds: list[float]) -> str:
    p50, p99 = np.percentile(np.array(seconds) * 1e6, (50, 99))
    return f"{p50:.0f} / {p99:.0f} us"
