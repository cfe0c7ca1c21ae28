"""Keras callbacks in a training run: an iteration is an epoch of one batch."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from trpo_tf.errors import UserError
from trpo_tf.learning.training_state import TrainingState
from trpo_tf.policies.policy import Policy
from trpo_tf.policies.running_stats import Moments

_NO_RATE = "an update of the policy has no learning rate: max_kl bounds its size, and anneal makes it smaller"
_REFUSED: dict[type[keras.callbacks.Callback], str] = {
    keras.callbacks.LearningRateScheduler: _NO_RATE,
    keras.callbacks.ReduceLROnPlateau: _NO_RATE,
    keras.callbacks.BackupAndRestore: "a run saves checkpoints of its own, with critic and normalisers; use `resume`",
    keras.callbacks.SwapEMAWeights: "there is no Keras optimizer, so there are no averaged weights to swap in",
    keras.callbacks.TerminateOnNaN: (
        "there is no loss to watch; training ends by itself at an observation or reward that is not finite"
    ),
    keras.callbacks.OrbaxCheckpoint: "it saves the state of an optimizer, and there is none; use ModelCheckpoint",
}
_NUMBERS_ONLY = (keras.callbacks.TensorBoard, keras.callbacks.ProgbarLogger)


def checked_callbacks(callbacks: Any) -> list[keras.callbacks.Callback]:
    """Return the callbacks of a list, which may be nested as Keras allows, or of a single callback.

    Raises `UserError` for an object that is not a Keras callback, and for a callback that can't work here.
    """
    found: list[keras.callbacks.Callback] = []
    for callback in keras.tree.flatten(callbacks):
        if isinstance(callback, keras.callbacks.CallbackList):
            found += checked_callbacks(callback.callbacks)
            continue
        if not isinstance(callback, keras.callbacks.Callback):
            raise UserError(
                f"callbacks has {callback!r}, which is no keras.callbacks.Callback; give an instance of one, or wrap a "
                "function: keras.callbacks.LambdaCallback(on_epoch_end=function)"
            )
        reason = _reason_to_refuse(callback)
        if reason is not None:
            raise UserError(f"callback {type(callback).__name__} can't be used: {reason}")
        found.append(callback)
    return found


def _reason_to_refuse(callback: keras.callbacks.Callback) -> str | None:
    for kind, reason in _REFUSED.items():
        if isinstance(callback, kind):
            return reason
    if isinstance(callback, keras.callbacks.TensorBoard) and callback.write_steps_per_second:
        return "write_steps_per_second counts an optimizer's steps, and there is none; leave it out"
    monitors = isinstance(callback, keras.callbacks.EarlyStopping | keras.callbacks.ModelCheckpoint)
    if monitors and callback.mode == "auto" and callback.monitor not in ("loss", "val_loss"):
        return f"Keras can't tell whether {callback.monitor} should grow; give it mode='max' or mode='min'"
    return None


class KerasListeners:
    """Calls Keras callbacks during a run; their `model` is the policy's network with its present weights.

    Weights that a callback sets in the model become the policy's. If they are those of an earlier iteration, the
    normaliser and the parameters outside the network become that iteration's too.
    """

    def __init__(self, policy: Policy, callbacks: list[keras.callbacks.Callback]) -> None:
        """Prepare to call `callbacks`, as `checked_callbacks` returns them."""
        self._network, self._callbacks = policy.network, callbacks
        self._model = policy.network.network
        self._earlier: dict[bytes, tuple[NDArray[np.float32], Moments]] = {}
        self.raised: Exception | None = None
        """Exception that a callback raised."""
        self._model.stop_training = False
        if not hasattr(self._model, "optimizer"):
            self._model.optimizer = None  # which only `compile` sets, and Keras's TensorBoard reads

    @property
    def stop_training(self) -> bool:
        """Whether a callback asked to stop, as Keras's `EarlyStopping` does."""
        return bool(self._model.stop_training)

    def train_begins(self, state: TrainingState, epochs: int) -> TrainingState:
        """Give the callbacks the model and `params`, as Keras does, and call `on_train_begin`."""
        params = {"verbose": 1, "epochs": epochs, "steps": 1}
        for callback in self._callbacks:
            callback.set_model(self._model)
            callback.set_params(params)
        return self._call("on_train_begin", state)

    def iteration_begins(self, state: TrainingState) -> TrainingState:
        """Call the hooks of a beginning epoch as `_call` does; iterations are numbered from 0, as Keras's epochs."""
        return self._call("on_train_batch_begin", self._call("on_epoch_begin", state, state.iteration), 0)

    def iteration_ended(self, state: TrainingState, metrics: Mapping[str, Any]) -> TrainingState:
        """Call the hooks of an ended epoch as `_call` does, with the metrics of the iteration that led to `state`."""
        logs = dict(metrics)
        after = self._call("on_train_batch_end", state, 0, logs=logs)
        return self._call("on_epoch_end", after, state.iteration - 1, logs=logs)

    def train_ends(self, state: TrainingState, metrics: Mapping[str, Any]) -> TrainingState:
        """Call `on_train_end` as `_call` does, with the last iteration's metrics.

        Weights that a callback sets take precedence over those of the best periodic evaluation.
        """
        after = self._call("on_train_end", state, logs=dict(metrics))
        return after if after is state else dataclasses.replace(after, best=None)

    def _call(
        self, hook: str, state: TrainingState, *arguments: int, logs: dict[str, Any] | None = None
    ) -> TrainingState:
        """Call `hook` of each callback, and return the state with the weights that they leave in the model.

        An exception of a callback gets a note that names the callback.
        """
        if not self._callbacks:
            return state
        self._network.assign(state.theta)
        logs = {} if logs is None else logs
        for callback in self._callbacks:
            try:
                getattr(callback, hook)(*arguments, _shown(callback, logs))
            except Exception as error:
                self.raised = error
                error.add_note(f"raised by the callback {type(callback).__name__} in {hook}")
                raise
        return self._with_weights_of_model(state)

    def _with_weights_of_model(self, state: TrainingState) -> TrainingState:
        weights = self._network.flat()
        own, extra = np.split(state.theta, [len(weights)])
        moments = state.observation_moments
        self._earlier[_digest(own)] = extra, moments
        if np.array_equal(weights, own):
            return state
        extra, moments = self._earlier.get(_digest(weights), (extra, moments))
        return dataclasses.replace(state, theta=np.concatenate([weights, extra]), observation_moments=moments)


def _shown(callback: keras.callbacks.Callback, logs: dict[str, Any]) -> dict[str, Any]:
    """Return the logs themselves, since a callback may add to them; a copy with only numbers for `_NUMBERS_ONLY`."""
    if not isinstance(callback, _NUMBERS_ONLY):
        return logs
    return {name: value for name, value in logs.items() if isinstance(value, int | float)}


def _digest(weights: NDArray[np.float32]) -> bytes:
    return hashlib.sha256(weights.tobytes()).digest()
