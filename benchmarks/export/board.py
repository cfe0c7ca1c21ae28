"""Measure what a policy costs on an emulated Cortex-M4: flash, RAM and instructions an action.

`python -m benchmarks.export.board` prints a table and writes results/board.json. The policies are untrained ones of two
tasks, with 64-64 units and tanh: what they cost hardly depends on what they learn. Two have memory: recurrent cells of
about 2,000 parameters, which take 22 numbers and answer 4.
"""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tests.support.export.c99_cases import CORTEX_M4, on_the_board
from tests.support.export.c99_policies import Exported
from tests.support.export.stateful import (
    Stateful,
    gru_cell,
    lstm_cell,
    one_episode_after_another,
    weights,
)
from tests.support.export.untrained import untrained_policy
from trpo_tf.envs.make import make_env
from trpo_tf.export import PolicySpec, convert_policy
from trpo_tf.export.c99 import c_sources
from trpo_tf.serving import ArraySpec, NoiseSpec, StateSpec
from trpo_tf.serving.verify import difference

INPUTS, OUTPUTS = 22, 4
ENVIRONMENTS = ("CartPole-v1", "HalfCheetah-v5")
OUT = Path(__file__).parents[1] / "results" / "board.json"
COLUMNS = ("policy", "weights", "flash_bytes", "ram_bytes", "stack_bytes", "instructions", "max_difference")


def measure(env_id: str, *, int8: bool) -> dict[str, Any]:
    """Return a row of the table; `max_difference` compares actions with those of ONNX Runtime and float32 weights."""
    env = make_env(env_id)
    untrained = untrained_policy(env.observation_space, env.action_space, hidden_sizes=(64, 64))
    env.close()
    policy = Exported(untrained.function, untrained.spec)
    sources = c_sources(policy.model, policy.spec, int8=int8)
    with tempfile.TemporaryDirectory() as folder:
        run = on_the_board(sources, policy.spec, policy.observations, policy.noise, Path(folder))
    figures = (run.flash, run.ram, run.stack, run.instructions, difference(run.actions, policy.actions))
    return dict(zip(COLUMNS, (env_id, "int8" if int8 else "float32", *figures), strict=True))


def gru() -> Stateful:
    """Step a GRU of 16 units, whose state is `hidden`: 1,988 parameters."""
    step, head, bias = gru_cell(INPUTS, 16), weights(16, OUTPUTS), weights(1, OUTPUTS)

    def act(observation: Any, state: Any, _: Any, noise: Any) -> tuple[Any, dict[str, Any]]:
        hidden = step(observation, state["hidden"])
        return tf.tanh(hidden @ head + bias + 0.1 * noise), {"hidden": hidden}

    return recurrent(act, StateSpec("hidden", "float32", (16,)))


def lstm() -> Stateful:
    """Step an LSTM of 13 units, whose state is `hidden` and `cell`: 1,928 parameters."""
    step, head, bias = lstm_cell(INPUTS, 13), weights(13, OUTPUTS), weights(1, OUTPUTS)

    def act(observation: Any, state: Any, _: Any, noise: Any) -> tuple[Any, dict[str, Any]]:
        hidden, cell = step(observation, state["hidden"], state["cell"])
        return tf.tanh(hidden @ head + bias + 0.1 * noise), {"hidden": hidden, "cell": cell}

    return recurrent(act, StateSpec("hidden", "float32", (13,)), StateSpec("cell", "float32", (13,)))


def recurrent(act: Any, *state: StateSpec) -> Stateful:
    """Return a policy of 22 numbers and 4 actions, with observations to run it on."""
    spec = PolicySpec(
        (ArraySpec("obs", "float32", (INPUTS,)),),
        ArraySpec("action", "float32", (OUTPUTS,), -1, 1),
        NoiseSpec("normal", (OUTPUTS,)),
        state,
    )
    return Stateful(act, spec, np.random.default_rng(1).standard_normal((48, INPUTS)).astype(np.float32))


def measure_recurrent(name: str, policy: Stateful, *, int8: bool) -> dict[str, Any]:
    """Return a row for a policy with state, along four episodes. RAM excludes the state, which the caller owns."""
    inputs, noise, actions = one_episode_after_another(policy)
    sources = c_sources(convert_policy(policy.function, policy.spec), policy.spec, int8=int8)
    with tempfile.TemporaryDirectory() as folder:
        run = on_the_board(sources, policy.spec, inputs, noise, Path(folder))
    figures = (run.flash, run.ram, run.stack, run.instructions, difference(run.actions, actions))
    return dict(zip(COLUMNS, (name, "int8" if int8 else "float32", *figures), strict=True))


def main() -> None:
    """Measure, print and write."""
    rows = [measure(env_id, int8=int8) for env_id in ENVIRONMENTS for int8 in (False, True)]
    for name, policy in (("GRU of 16", gru()), ("LSTM of 13", lstm())):
        rows += [measure_recurrent(name, policy, int8=int8) for int8 in (False, True)]
    tools = {tool: _version(tool) for tool in ("arm-none-eabi-gcc", "qemu-system-arm")}
    OUT.write_text(json.dumps({"tools": tools, "flags": " ".join(CORTEX_M4), "rows": rows}, indent=2) + "\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for row in rows:
        print(f"| {' | '.join(_shown(row[column]) for column in COLUMNS)} |")


def _version(tool: str) -> str:
    return subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
