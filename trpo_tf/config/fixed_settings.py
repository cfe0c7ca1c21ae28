"""Settings that a run keeps from its start to its end, since its weights and checkpoints depend on them."""

from typing import Any

from trpo_tf.config.algorithms import find_algorithm
from trpo_tf.config.option_names import flat
from trpo_tf.config.settings import Config

MEANING_OF_WEIGHTS = (
    *("head", "hidden_sizes", "activation", "state_dependent_std", "squash", "memory", "history", "previous_action"),
    *("time_feature", "normalize_observations", "observation_offset", "least_deviation"),
    *("critic_hidden_sizes", "value_scaling"),
)
"""Settings, by their own names, without which a run's weights and statistics compute something else."""

_USED_AT_THE_START = ("last_layer_scale", "initial_log_std", "unit_std")
_IN_CHECKPOINTS = ("algo", "objective", "num_envs")


def fixed_settings(config: Config) -> dict[str, Any]:
    """Return the settings that can't change after the start of a run, by their own names.

    All others may be edited in a run's config.toml, and hold from the next `resume` on.
    """
    names = [*MEANING_OF_WEIGHTS, *_USED_AT_THE_START, *_IN_CHECKPOINTS]
    if config.critic.memory > 1:
        names.append("batch_size")  # of the batches that checkpoints hold
    algorithm = find_algorithm(config.algo)
    if algorithm.adapts is not None and not algorithm.can_anneal:
        names.append("kl_coefficient" if algorithm.adapts == "kl_coefficient" else "max_kl")
    values = flat(config.to_dict())
    return {name: values[name] for name in names}


def first_difference(config: Config, start: Config) -> tuple[str, Any, Any] | None:
    """Return the name of the first fixed setting that differs from those at the `start`, and its value in each."""
    now, then = flat(config.to_dict()), fixed_settings(start)
    return next(((name, now[name], value) for name, value in then.items() if now[name] != value), None)
