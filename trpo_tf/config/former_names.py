"""Names of earlier releases, which run folders, bundles, scripts and command lines may still hold."""

from collections.abc import Mapping
from typing import Any

from trpo_tf.errors import UserError

SETTINGS = {
    "trial_interval": "eval_interval",
    "trial_episodes": "periodic_eval_episodes",
    "critic.critic_hidden_sizes": "critic.hidden_sizes",
    "critic.critic_epochs": "critic.epochs",
    "critic.critic_batch_size": "critic.batch_size",
    "critic.critic_learning_rate": "critic.learning_rate",
    "critic.critic_memory": "critic.memory",
}
"""Settings by their path in config.toml, GROUP.NAME or NAME: former path -> present path."""

FLAGS = {
    "--scale-rewards": ("--value-scaling", "rewards"),
    "--no-scale-rewards": ("--value-scaling", "none"),
}
"""Switches of the command line that have become values of another option."""

METRICS = {
    "trial_return": "eval_return",
    "trial_episodes_cut": "eval_episodes_cut",
    "max_kl": "max_state_kl",
}
"""Columns of metrics.jsonl: former name -> present name.

The former `control` has no entry: its present name, `radius` or `kl_coefficient`, depends on the algorithm.
"""

COUNTERS = {"trial_steps": "eval_steps"}
"""Numbers in summary.json and in checkpoints: former name -> present name."""


def renamed(values: Mapping[str, Any], table: Mapping[str, str]) -> dict[str, Any]:
    """Return `values` under their present names, in the same order."""
    return {table.get(name, name): value for name, value in values.items()}


def with_present_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings under their present names. Raises `UserError` if one is given under both names."""
    values = {name: dict(value) if isinstance(value, dict) else value for name, value in settings.items()}
    for former, present in SETTINGS.items():
        group, _, name = former.rpartition(".")
        owner = values.get(group) if group else values
        if not isinstance(owner, dict) or name not in owner:
            continue
        own = present.rpartition(".")[2]
        if own in owner:
            raise UserError(f"{former} and {present} are two names of one setting; give {present} alone")
        owner[own] = owner.pop(name)
    return values
