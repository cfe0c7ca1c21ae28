"""What does a policy cost on a Cortex-M4? Flash, RAM and instructions an action, on an emulated board.

`python benchmarks/board.py` prints a table and writes results/board.json. The policies are untrained ones of two
tasks, with 64-64 units and tanh: what they cost hardly depends on what they learn.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.export.c99_cases import CORTEX_M4, on_the_board  # noqa: E402
from tests.support.export.c99_policies import Exported  # noqa: E402
from tests.support.export.untrained import untrained_policy  # noqa: E402
from trpo_tf.envs.make import make_env  # noqa: E402
from trpo_tf.export.c99 import c_sources  # noqa: E402
from trpo_tf.serving.verify import difference  # noqa: E402

ENVIRONMENTS = ("CartPole-v1", "HalfCheetah-v5")
OUT = ROOT / "benchmarks" / "results" / "board.json"
COLUMNS = ("policy", "weights", "flash_bytes", "ram_bytes", "stack_bytes", "instructions", "max_difference")


def measure(env_id: str, *, int8: bool) -> dict[str, Any]:
    """A row of the table; `max_difference` is of actions, from ONNX Runtime's with float32 weights."""
    env = make_env(env_id)
    untrained = untrained_policy(env.observation_space, env.action_space, hidden_sizes=(64, 64))
    env.close()
    policy = Exported(untrained.function, untrained.spec)
    sources = c_sources(policy.model, policy.spec, int8=int8)
    with tempfile.TemporaryDirectory() as folder:
        run = on_the_board(sources, policy.spec, policy.observations, policy.noise, Path(folder))
    figures = (run.flash, run.ram, run.stack, run.instructions, difference(run.actions, policy.actions))
    return dict(zip(COLUMNS, (env_id, "int8" if int8 else "float32", *figures), strict=True))


def main() -> None:
    """Measure, print and write."""
    rows = [measure(env_id, int8=int8) for env_id in ENVIRONMENTS for int8 in (False, True)]
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
