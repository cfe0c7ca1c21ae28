"""A search from beginning to end: trials in processes, and the best settings as a file."""

import dataclasses
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tomli_w

from trpo_tf.benchmark.job_start import starting
from trpo_tf.benchmark.pool import Job, run_jobs
from trpo_tf.config.settings import Config
from trpo_tf.errors import UserError
from trpo_tf.sampling.ray_connection import check_address
from trpo_tf.search.space import suggest, with_values
from trpo_tf.search.study import Search, fail_abandoned, open_study
from trpo_tf.support.atomic_write import write_atomically
from trpo_tf.training.early_checks import check_environment

if TYPE_CHECKING:
    import optuna

BEST_FILE, LOG_FOLDER = "best.toml", "logs"
_SHOWN = 5
_EVALUATIONS = 10
"""Periodic evaluations of a run whose settings ask for none."""


class Outcome(NamedTuple):
    """Outcome of a search: a table of the best trials, and the reasons of those that failed, by number."""

    table: str
    failures: dict[str, str]


def search(wanted: Search, trials: int, *, jobs: int, out: Path, seed: int = 0, ray: str | None = None) -> Outcome:
    """Run trials, `jobs` at a time, until the study has `trials` that were completed or pruned.

    Write the settings of the best one to best.toml in `out`. With `ray` the machines of the Ray cluster at that address
    run the trials; all of them see `out`, and reach the study's storage.

    Raises:
        UserError: something in the arguments can't work, or the study has another space.
        KeyboardInterrupt: asked to stop; the trials that were under way count as failed.
    """
    for name, value in (("trials", trials), ("jobs", jobs), ("seeds", len(wanted.seeds))):
        if value < 1:
            raise UserError(f"{name} must be at least 1")
    if ray is not None:
        check_address(ray)
    check_environment(wanted.config)
    wanted = dataclasses.replace(wanted, config=evaluated(wanted.config), storage=_absolute(wanted.storage))
    study = open_study(wanted)
    fail_abandoned(study)
    (out / LOG_FOLDER).mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    known = _ended(study)

    def ended(job: Job, reason: str | None) -> None:
        if reason is not None:
            failures[job.log.stem] = reason
            fail_abandoned(study, job.arguments[-1])
        for trial in _ended(study)[len(known) :]:
            known.append(trial)
            print(_line(trial), file=sys.stderr, flush=True)  # noqa: T201

    first = len(study.trials)
    try:
        planned = [_job(wanted, out, first + place, seed) for place in range(trials - len(known))]
        with starting(ray, jobs) as start:
            run_jobs(planned, jobs, ended=ended, watch=lambda _: None, start=start)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped after {len(known)} of {trials} trials; the same command goes on") from None
    return Outcome(_written(study, wanted, out), failures)


def evaluated(config: Config) -> Config:
    """Return the config with periodic evaluations and one at the end, if it has none."""
    return dataclasses.replace(
        config,
        eval_interval=config.eval_interval or max(1, config.total_steps // _EVALUATIONS),
        eval_episodes=config.eval_episodes or Config("").eval_episodes,
    )


def _job(wanted: Search, out: Path, number: int, seed: int) -> Job:
    drawn = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    arguments = "-m", "trpo_tf.search.worker", wanted.to_json(), str(drawn), uuid.uuid4().hex
    return Job(out.absolute(), arguments, out.absolute() / LOG_FOLDER / f"{number}.log")


def _absolute(storage: str) -> str:
    """Return a storage that other machines' processes find; a URL stays."""
    return storage if "://" in storage else str(Path(storage).absolute())


def _ended(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """Return the trials that were completed or pruned, in the order of their end."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return sorted(trials, key=lambda trial: (trial.datetime_complete, trial.number))


def _line(trial: "optuna.trial.FrozenTrial") -> str:
    score = f"return {trial.value:,.1f}" if trial.state.name == "COMPLETE" else "pruned"
    settings = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in trial.params.items()
    )
    reason = f" ({trial.user_attrs['reason']})" if "reason" in trial.user_attrs else ""
    return f"trial {trial.number}: {score}{reason}  {settings}"


def _written(study: "optuna.Study", wanted: Search, out: Path) -> str:
    """Write the best settings, and return the table of the best trials; it is empty if none was completed."""
    import optuna

    completed = [trial for trial in _ended(study) if trial.state == optuna.trial.TrialState.COMPLETE]
    best = sorted(completed, key=lambda trial: (-float(trial.value or 0.0), trial.number))[:_SHOWN]
    if not best:
        return ""
    chosen = suggest(optuna.trial.FixedTrial(best[0].params), wanted.space)  # type: ignore[arg-type]
    config = dataclasses.replace(with_values(wanted.config, chosen), seed=0)
    write_atomically(out / BEST_FILE, tomli_w.dumps(config.to_dict()).encode())
    return "\n".join(map(_line, best))
