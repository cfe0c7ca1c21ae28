"""What all tests share: quiet libraries, and one trained run."""

import dataclasses
import gc
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# Compiling takes most of a small run's time: little is optimised, and the older emitter takes a third less.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
# Hundreds of processes import the same modules, and compiling those each time takes minutes.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# A background job of a shell ignores Ctrl-C, and so would every process that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest

from tests.support.paths import ROOT

sys.dont_write_bytecode = False

WALK = "tests.support.environments:Walk-v0"


class Trained(NamedTuple):
    """A run over several checkpoints, and what it told its observer and its callbacks."""

    run: Any
    observed: list[dict[str, Any]]
    logs: list[tuple[int, dict[str, Any]]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that tests/slow.txt names as slow, and those that use a fixture that it names."""
    slow = set(Path(__file__).with_name("slow.txt").read_text().split())
    for item in items:
        file = f"tests/{item.path.relative_to(Path(__file__).parent)}"
        if not slow.isdisjoint(f"{file}::{name}" for name in (item.originalname, *item.fixturenames)):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def brief_latencies():
    """Exports measure a target for a hundredth of the time: how fast it is is for benchmarks."""
    if importlib.util.find_spec("tensorflow") is None:  # where serving is installed by itself
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trpo_tf.export.parity.latency._SECONDS", 0.002)
        gc.freeze()  # TensorFlow's modules are half a million objects, which each full collection would look at
        yield


@pytest.fixture(scope="session", autouse=True)
def shared_functions():
    """Runs of the same structure share their compiled functions: see `tests.support.training.shared_functions`."""
    if "trpo_tf.learning.learner" not in sys.modules:  # no test that was collected trains
        yield pytest.MonkeyPatch()
        return
    from tests.support.training.shared_functions import share

    with pytest.MonkeyPatch.context() as patch:
        share(patch)
        yield patch


@pytest.fixture
def own_functions(shared_functions):
    """Functions that no other run has called, for a test of when they are traced."""
    from tests.support.training.shared_functions import share

    shared_functions.undo()
    yield
    share(shared_functions)


@pytest.fixture
def serving_only():
    """Runs commands in a process where a serving-only install's packages alone can be imported: its stdout."""

    def run(*commands: list[str]) -> str:
        absent = ("tensorflow", "keras", "tf2onnx", "onnx", "gymnasium", "ai_edge_litert", "rich", "tomli_w")
        code = f"import sys; sys.modules.update(dict.fromkeys({absent})); from trpo_tf.cli.main import main\n"
        done = subprocess.run(
            [sys.executable, "-c", code + "".join(f"main({command!r})\n" for command in commands)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


@pytest.fixture(scope="session")
def small_config():
    """Makes configs that train in a second and evaluate nothing: `small_config(env_id, total_steps=...)`."""
    from trpo_tf.config.settings import Config, CriticConfig, InnerConfig, PolicyConfig, SamplingConfig

    base = Config(
        WALK,
        total_steps=192,
        eval_episodes=0,
        sampling=SamplingConfig(num_envs=4, batch_size=64),
        policy=PolicyConfig(hidden_sizes=(8,)),
        inner=InnerConfig(policy_batch_size=32),
        critic=CriticConfig(hidden_sizes=(8,), batch_size=32, epochs=2),
    )

    def make(env_id: str = WALK, **settings: Any) -> Config:
        config = dataclasses.replace(base, env_id=env_id)
        for name, value in settings.items():
            if hasattr(config, name):
                config = dataclasses.replace(config, **{name: value})
                continue
            parts = ("environment", "sampling", "policy", "trust_region", "critic")
            own = {part: name.removeprefix("critic_") if part == "critic" else name for part in parts}
            part = next(part for part in parts if hasattr(getattr(config, part), own[part]))
            component = dataclasses.replace(getattr(config, part), **{own[part]: value})
            config = dataclasses.replace(config, **{part: component})
        return config

    return make


@pytest.fixture(scope="session")
def trained(small_config, tmp_path_factory) -> Trained:
    """A run of `tests.support.environments:Walk-v0`; not to be changed."""
    import keras

    from trpo_tf.training.train import train

    observed, logs = [], []
    listener = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, told: logs.append((epoch, dict(told))))
    run = train(
        small_config(total_steps=600, checkpoint_steps=100, eval_episodes=2),
        tmp_path_factory.mktemp("runs") / "walk",
        callbacks=[listener],
        observer=observed.append,
    )
    return Trained(run, observed, logs)


@pytest.fixture(scope="session")
def bundle(trained, tmp_path_factory):
    """The bundle of `trained`; not to be changed."""
    from trpo_tf.exporting.run_bundle import export_run

    folder = tmp_path_factory.mktemp("bundles") / "walk"
    export_run(trained.run, folder)
    return folder
