"""One trial of a search, in a process of its own: `python -m trpo_tf.search.worker SEARCH SEED JOB`.

SEARCH is what `Search.to_json` returns, SEED that of the sampler, JOB a name that no other trial's process has.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

import optuna

from trpo_tf.benchmark.worker import failure_told, use_one_thread
from trpo_tf.errors import UserError
from trpo_tf.search.space import suggest, with_values
from trpo_tf.search.study import JOB, PROCESS, Search, fail_abandoned, open_study, this_process
from trpo_tf.training.train import train

REASON = "reason"
"""Attribute of a trial that was not run, since its settings do not go together."""

RETURNS = "returns"
"""Attribute of a trial: the mean return of each of its runs."""


def run_trial(search: Search, trial: optuna.Trial) -> float:
    """Train with each seed, and return the mean of the runs' evaluations.

    Raises `optuna.TrialPruned` if the periodic evaluations are in the worse half of earlier trials', or the settings
    can't work together.
    """
    trial.set_user_attr(PROCESS, this_process())
    try:
        config = with_values(search.config, suggest(trial, search.space))
    except UserError as error:
        trial.set_user_attr(REASON, str(error))
        raise optuna.TrialPruned(str(error)) from error
    returns: list[float] = []
    for number, seed in enumerate(search.seeds):

        def observe(metrics: dict[str, Any], before: int = number * config.total_steps) -> None:
            if metrics["eval_return"] is not None:
                _report(trial, before + metrics["steps"], [*returns, metrics["eval_return"]])

        with tempfile.TemporaryDirectory(prefix="trpo-tf-search-") as scratch:
            run = train(dataclasses.replace(config, seed=seed), Path(scratch) / "run", observer=observe, progress=False)
        returns.append(run.summary["trained"]["mean_return"])
        trial.set_user_attr(RETURNS, returns)
    return sum(returns) / len(returns)


def _report(trial: optuna.Trial, step: int, returns: list[float]) -> None:
    trial.report(sum(returns) / len(returns), step)
    if trial.should_prune():
        raise optuna.TrialPruned


def main(search: Search, seed: int, job: str) -> None:
    """Run the trial."""
    with failure_told():
        study = open_study(search, seed, new=False)
        fail_abandoned(study, job)  # on a machine that was lost, where this job ran before

        def objective(trial: optuna.Trial) -> float:
            trial.set_user_attr(JOB, job)
            return run_trial(search, trial)

        study.optimize(objective, n_trials=1)


if __name__ == "__main__":
    use_one_thread()
    main(Search.from_json(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
