"""Watchers of a run: callbacks, an observer, the profiler and the progress bar."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypedDict

import keras

from trpo_tf.config.names_elsewhere import known_as
from trpo_tf.config.option_names import flat
from trpo_tf.config.settings import Config
from trpo_tf.errors import UserError
from trpo_tf.serving.argument_checks import expect
from trpo_tf.training.callbacks import checked_callbacks

Observer = Callable[[dict[str, Any]], None]
"""Called with the metrics of each iteration."""


class WatcherArguments(TypedDict, total=False):
    """Arguments that `train` and `resume` pass to `Watchers`."""

    callbacks: Sequence[keras.callbacks.Callback]
    observer: Observer | None
    profile: bool
    progress: bool


@dataclass(frozen=True)
class Watchers:
    """The watchers of a run; `trpo_tf.training.train.train` describes each."""

    callbacks: Sequence[keras.callbacks.Callback] = ()
    observer: Observer | None = None
    profile: bool = False
    progress: bool = True

    def __new__(cls, **arguments: Any) -> Self:
        """Raise `UserError` for an unknown argument, and say what is meant."""
        own, settings = WatcherArguments.__annotations__, flat(Config("").to_dict())
        for name in arguments.keys() - own:
            meant = f"it is a setting: Config.for_env(..., {name}=...)" if name in settings else ""
            meant = meant or known_as(name, (*own, *settings)) or "see help(trpo_tf.train)"
            raise UserError(f"argument {name!r} is unknown; {meant}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Raise `UserError` for an observer that can't be called, or a callback that can't be used."""
        expect(self.observer, Callable | None, "observer must be a function of an iteration's metrics", UserError)
        object.__setattr__(self, "callbacks", checked_callbacks(self.callbacks))
