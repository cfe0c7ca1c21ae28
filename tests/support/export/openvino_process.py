"""OpenVINO, in a process of its own: it leaves signal handlers a stack so small that the next signal ends it."""

import functools
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from trpo_tf.export import PolicySpec
from trpo_tf.export.policy.functions import Actor, Answers
from trpo_tf.serving.runtime.observations import by_name


def openvino_actor(pool: ProcessPoolExecutor, content: bytes, spec: PolicySpec) -> Actor:
    """A graph in OpenVINO, in the one process of `pool`."""

    step = openvino_step(pool, content, spec)
    return lambda observations, noise: step(observations, noise)[spec.action.name]


def openvino_step(pool: ProcessPoolExecutor, content: bytes, spec: PolicySpec) -> Answers:
    """A graph's action and next state in OpenVINO, in the one process of `pool`."""
    outputs = [array.name for array in (spec.action, *spec.next_state)]

    def step(inputs: Any, noise: np.ndarray) -> dict[str, np.ndarray]:
        feeds = by_name(inputs, spec.observation[0].name) | {spec.noise.name: noise}
        return pool.submit(answers, content, outputs, feeds).result()

    return step


def one_process() -> ProcessPoolExecutor:
    """A pool of one, which starts afresh."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def answers(content: bytes, outputs: list[str], feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs by name, of those feeds that the graph knows; in the other process."""
    compiled = _compiled(content)
    known = {name for port in compiled.inputs for name in port.names}
    found = compiled({name: feeds[name] for name in feeds.keys() & known})
    return {output: found[output].copy() for output in outputs}


@functools.lru_cache(maxsize=2)
def _compiled(content: bytes) -> Any:
    # Otherwise OpenVINO reports each import to Google Analytics.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    assert openvino.tools.ovc.telemetry_utils.tm.__name__.endswith("telemetry_stub")
    # By default OpenVINO computes in bfloat16 on processors that can.
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    core = openvino.Core()
    return core.compile_model(core.read_model(content), "CPU", options)
