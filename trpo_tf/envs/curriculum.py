"""Change environments as a run goes on: the protocol `set_options(progress)`, and scheduled options of `reset`.

`progress` is the share of the run that is done, from 0 to 1. Training sets it between iterations. Whatever else makes
an environment, such as an evaluation, an export or a video, meets it as at the end of the run, at 1.
"""

import inspect
import warnings
from collections.abc import Iterator, Mapping
from inspect import Parameter
from typing import Any

import gymnasium as gym

from trpo_tf.config.reset_options import options_at
from trpo_tf.errors import ENVIRONMENT_ERRORS, environment_failure

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_ANY_COUNT = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


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

    A method of that name whose first parameter is not called `progress` is the environment's own, and is left alone.

    Raises `EnvironmentFailure` for an exception there.
    """
    for each in _layers(env):
        try:
            change: Any = getattr(each, "set_options", None)
            if _takes_progress(change):
                change(progress)
        except ENVIRONMENT_ERRORS as error:
            raise environment_failure(f"set_options({progress:g})", error) from error


def warn_of_others(env: Any) -> None:
    """Warn of each method `set_options` that is not called, since its first parameter is not `progress`."""
    for each in _layers(env):
        found = getattr(each, "set_options", None)
        if callable(found) and not _takes_progress(found):
            warnings.warn(
                f"{type(each).__name__}.set_options is not called: its first parameter is not called progress "
                "(docs/howto/train/curriculum.md)",
                stacklevel=3,
            )


def _layers(env: Any) -> Iterator[Any]:
    """Yield an environment and what it wraps, outermost first."""
    yield env
    while isinstance(env, gym.Wrapper):
        env = env.env
        yield env


def _takes_progress(method: Any) -> bool:
    """Return whether a method can be called with one argument, which it calls `progress`."""
    try:
        first, *others = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):  # no method, one without arguments, or one without a signature
        return False
    optional = (parameter.default is not parameter.empty or parameter.kind in _ANY_COUNT for parameter in others)
    return first.name == "progress" and first.kind in _POSITIONAL and all(optional)
