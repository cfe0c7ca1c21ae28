"""Which settings learn an environment best? Searches with Optuna, from the environment's preset on.

`python benchmarks/search.py Hopper-v5 --trials 20` goes on with what `--storage` holds already; several of them may
run at once. Seeds begin at 100: a benchmark's own are never searched on. The first trial is the preset itself. Needs
Optuna: `pip install '.[search]'`.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend, JournalStorage
from settings import with_settings

from trpo_tf.benchmark.worker import use_one_thread
from trpo_tf.config.settings import Config, load_preset, preset_for
from trpo_tf.training.train import train

FIRST_SEED = 100
SPACE: dict[str, tuple[Any, ...]] = {
    "anneal": (False, True),
    "sampling.batch_size": (1024, 2048, 4096),
    "sampling.discount": (0.98, 0.99, 0.995, 0.999),
    "sampling.gae_lambda": (0.9, 0.95, 0.97, 0.99),
    "trust_region.max_kl": (0.01, 0.02, 0.03, 0.05),
    "trust_region.damping": (0.01, 0.1, 1.0),
    "policy.hidden_sizes": ((64, 64), (128, 128), (256, 256)),
    "policy.initial_log_std": (-1.0, -0.7, -0.5, 0.0),
    "critic.hidden_sizes": ((64, 64), (128, 128), (256, 256)),
    "critic.epochs": (5, 10, 20),
    "critic.learning_rate": (3e-4, 1e-3),
}
"""Setting -> values to choose from, besides the preset's own."""


def settings_of(config: Config) -> dict[str, str]:
    """What a config has for each setting that is searched, as JSON: Optuna's storage would make lists of tuples."""
    values = config.to_dict()
    found = {}
    for name in SPACE:
        component, _, field = name.rpartition(".")
        found[name] = json.dumps((values[component] if component else values)[field])
    return found


def suggest(trial: optuna.Trial, preset: dict[str, str]) -> dict[str, Any]:
    """A value for each setting."""
    chosen = {}
    for name, values in SPACE.items():
        choices = dict.fromkeys([*map(json.dumps, values), preset[name]])
        value = json.loads(trial.suggest_categorical(name, [*choices]))
        chosen[name] = tuple(value) if isinstance(value, list) else value
    return chosen


def score(config: Config, trial: optuna.Trial, seeds: int) -> float:
    """Mean return of the trained policies, 20 deterministic episodes each; a hopeless trial is pruned between seeds."""
    returns: list[float] = []
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        with tempfile.TemporaryDirectory() as scratch:
            run = train(dataclasses.replace(config, seed=seed), Path(scratch) / "run")
        returns.append(run.summary["trained"]["mean_return"])
        trial.set_user_attr("returns", returns)
        trial.report(sum(returns) / len(returns), len(returns))
        if trial.should_prune():
            raise optuna.TrialPruned
    return sum(returns) / len(returns)


def main() -> None:
    """Search, and print the best trials."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env_id")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2, help="seeds of each trial")
    parser.add_argument("--storage", type=Path, default=Path("runs/search.log"))
    arguments = parser.parse_args()
    use_one_thread()
    arguments.storage.parent.mkdir(parents=True, exist_ok=True)
    start = load_preset(preset_for(arguments.env_id), arguments.env_id)
    study = optuna.create_study(
        study_name=arguments.env_id,
        storage=JournalStorage(JournalFileBackend(str(arguments.storage))),
        direction="maximize",
        pruner=optuna.pruners.PercentilePruner(50.0, n_startup_trials=4),
        load_if_exists=True,
    )
    preset = settings_of(start)
    study.enqueue_trial(preset, skip_if_exists=True)

    def objective(trial: optuna.Trial) -> float:
        return score(with_settings(start, suggest(trial, preset)), trial, arguments.seeds)

    study.optimize(objective, n_trials=arguments.trials)
    finished = [trial for trial in study.trials if trial.value is not None]
    for trial in sorted(finished, key=lambda trial: -trial.value)[:5]:
        print(f"{trial.value:10.1f}  {trial.user_attrs['returns']}  {trial.params}")


if __name__ == "__main__":
    main()
