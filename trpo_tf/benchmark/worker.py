"""One run of a benchmark, in a process of its own: `python -m trpo_tf.benchmark.worker FOLDER CONFIG`.

It trains or resumes, exports, evaluates the exported policy, and writes the result. CONFIG is JSON.
"""

import contextlib
import fcntl
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from trpo_tf import serving
from trpo_tf.benchmark.machine import describe_machine
from trpo_tf.benchmark.results import BUNDLE_FOLDER, EPISODES, RUN_FOLDER, Result, is_finished, write_result
from trpo_tf.config.settings import Config
from trpo_tf.errors import UserError
from trpo_tf.evaluation.evaluate import evaluate, longest_episode
from trpo_tf.exporting.provenance import versions
from trpo_tf.exporting.run_bundle import export_run
from trpo_tf.runs.folder import Run, load_run
from trpo_tf.runs.layout import METRICS_FILE, is_run
from trpo_tf.training.train import resume, train

_EXPORT_EPISODES = 3
FAILED = 1
INTERRUPTED = 130

_LOCK_FILE = ".lock"


def main(folder: Path, config: Config) -> None:
    """Do the run."""
    with failure_told(), _locked(folder):
        if not is_finished(folder):
            write_result(folder, carry_out(config, folder))


@contextlib.contextmanager
def failure_told() -> Iterator[None]:
    """Exit with status 1 after a failure, whose reason is then the last line on standard error."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        print(interrupt, file=sys.stderr)  # noqa: T201
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001  whatever a run fails by is for the report
        if not isinstance(error, OSError | UserError):
            traceback.print_exc()
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        sys.exit(FAILED)


def carry_out(config: Config, folder: Path) -> Result:
    """Train and export the run unless that is done, evaluate its bundle, and return the result."""
    run = _trained(config, folder / RUN_FOLDER)
    bundle = folder / BUNDLE_FOLDER
    if not bundle.exists():
        export_run(run, bundle, episodes=_EXPORT_EPISODES)
    evaluation = evaluate(
        serving.load(bundle),
        config.made_environment,
        episodes=EPISODES,
        deterministic=True,
        longest=longest_episode(config.made_environment, config.total_steps, EPISODES),
    )
    return Result(
        environment=config.env_id,
        seed=config.seed,
        steps=run.state.steps,
        evaluation=evaluation.to_dict(),
        curve=learning_curve(run.folder),
        seconds=run.state.seconds,
        steps_per_second=run.summary["steps_per_second"],
        config=config.to_dict(),
        versions=versions(),
        machine=describe_machine(),
        untrained_return=run.summary["untrained"].get("mean_return"),
    )


def learning_curve(run: Path) -> tuple[tuple[int, float], ...]:
    """Return steps and mean return of each iteration, from the first that had a finished episode."""
    lines = map(json.loads, (run / METRICS_FILE).read_text().splitlines())
    return tuple((line["steps"], line["mean_return"]) for line in lines if line["mean_return"] is not None)


def _trained(config: Config, folder: Path) -> Run:
    if not is_run(folder):
        return train(config, folder, progress=False)
    run = load_run(folder)
    return run if "trained" in run.summary else resume(folder, progress=False)


def use_one_thread() -> None:
    """Have TensorFlow leave other cores to other runs; call it before TensorFlow computes anything."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process works in `folder`: a worker of a killed benchmark may still be saving."""
    with (folder / _LOCK_FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    use_one_thread()
    main(Path(sys.argv[1]), Config.from_dict(json.loads(sys.argv[2])))
