"""Keras callbacks in a training run: an iteration is an epoch."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import keras

from trpo_tf.policies.policy import Policy
from trpo_tf.state import TrainingState


class KerasListeners:
    """Tells Keras callbacks of the run; their `model` is the policy's network, with its weights up to date."""

    def __init__(self, policy: Policy, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        """Callbacks hear of the training's start on entry, of its end on a regular exit."""
        self._network, self._callbacks = policy.network, list(callbacks)
        self._model = policy.network.network
        self._model.stop_training = False
        for callback in self._callbacks:
            callback.set_model(self._model)

    @property
    def stop_training(self) -> bool:
        """Whether a callback asked to stop, as Keras's `EarlyStopping` does."""
        return bool(self._model.stop_training)

    def iteration_ended(self, state: TrainingState, metrics: Mapping[str, Any]) -> None:
        """Tell of an iteration, counted from 0 as Keras counts epochs, and its metrics."""
        if self._callbacks:
            self._network.assign(state.theta)
        for callback in self._callbacks:
            callback.on_epoch_end(state.iteration - 1, dict(metrics))

    def __enter__(self) -> Self:
        for callback in self._callbacks:
            callback.on_train_begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            for callback in self._callbacks:
                callback.on_train_end()
