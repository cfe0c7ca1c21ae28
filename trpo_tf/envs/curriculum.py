"""Change environments as a run goes on: the protocol `set_options(progress)`, and scheduled options of `reset`.

`progress` is the share of the run that is done, from 0 to 1. Training sets it between iterations. Whatever else makes
an environment, such as an evaluation, an export or a video, meets it as at the end of the run, at 1.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from trpo_tf.config.reset_options import options_at
from trpo_tf.errors import environment_failure


class ResetOptions(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that passes the options of a schedule to `reset`; options given there take precedence."""

    def __init__(self, env: gym.Env[Any, Any], schedule: Mapping[str, Any]) -> None:
        """Take the schedule as `options_at` explains it; the options are those of the end until `set_options`."""
        super().__init__(env)
        self._schedule = schedule
        self.set_options(1.0)

    def set_options(self, progress: float) -> None:
        """Use the options of `progress` from the next reset on."""
        self._options = options_at(self._schedule, progress)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment with the present options."""
        return self.env.reset(seed=seed, options=self._options | (options or {}))


def set_progress(env: Any, progress: float) -> None:
    """Call `set_options(progress)` of an environment and of each of its wrappers that has it.

    Raises `EnvironmentFailure` for an exception there.
    """
    try:
        if callable(change := getattr(env, "set_options", None)):
            change(progress)
    except Exception as error:
        raise environment_failure(f"set_options({progress:g})", error) from error
    if isinstance(env, gym.Wrapper):
        set_progress(env.env, progress)
