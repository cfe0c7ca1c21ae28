"""Keras callbacks in a run: each hook is called, what it does to the weights counts, and what can't work is refused."""

import csv
from pathlib import Path

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trpo_tf.errors import UserError
from trpo_tf.runs.folder import load_run
from trpo_tf.training.train import resume, train

# Of continuous actions: the deviation is a parameter that no Keras network holds
REACH = "tests.support.environments:Reach-v0"


class Diary(keras.callbacks.Callback):
    """Notes every hook of training, and the first weights that it saw there."""

    def __init__(self):
        super().__init__()
        self.calls, self.weights = [], []

    def _note(self, hook, *arguments):
        self.calls.append((hook, *arguments))
        self.weights.append(self.model.get_weights()[0].copy())

    def on_train_begin(self, logs=None):
        self._note("train_begin", sorted(logs))

    def on_epoch_begin(self, epoch, logs=None):
        self._note("epoch_begin", epoch, sorted(logs))

    def on_train_batch_begin(self, batch, logs=None):
        self._note("batch_begin", batch, sorted(logs))

    def on_train_batch_end(self, batch, logs=None):
        self._note("batch_end", batch, "mean_kl" in logs)

    def on_epoch_end(self, epoch, logs=None):
        logs["mine"] = epoch
        self._note("epoch_end", epoch, "mean_kl" in logs)

    def on_train_end(self, logs=None):
        self._note("train_end", "mean_kl" in logs)


def network_weights(run):
    """The first kernel of the policy that the run ends with."""
    return run.policy.policy.network.split_array(run.policy.theta)[0]


@pytest.mark.filterwarnings("ignore:Could not reach RemoteMonitor")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:keras")  # as it saves weights
def test_keras_callbacks_do_what_keras_says(small_config, tmp_path, capsys):
    diary, history = Diary(), keras.callbacks.History()
    run = train(
        small_config(total_steps=192),
        tmp_path / "run",
        callbacks=[
            [diary, keras.callbacks.CallbackList([history])],
            keras.callbacks.TensorBoard(tmp_path / "events", histogram_freq=1, update_freq="batch"),
            keras.callbacks.ProgbarLogger(),
            keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras", monitor="mean_return", mode="max"),
            keras.callbacks.ModelCheckpoint(tmp_path / "last.weights.h5", save_weights_only=True, save_freq=1),
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
            keras.callbacks.RemoteMonitor("http://127.0.0.1:1"),
        ],
    )
    assert run.state.iteration == 3
    an_epoch = lambda n: [  # noqa: E731
        ("epoch_begin", n, []),
        ("batch_begin", 0, []),
        ("batch_end", 0, True),
        ("epoch_end", n, True),
    ]
    assert diary.calls == [("train_begin", []), *an_epoch(0), *an_epoch(1), *an_epoch(2), ("train_end", True)]
    assert diary.params == {"verbose": 1, "epochs": 3, "steps": 1}
    np.testing.assert_array_equal(diary.weights[2], diary.weights[0])
    assert not np.array_equal(diary.weights[3], diary.weights[0])
    np.testing.assert_array_equal(diary.weights[-1], network_weights(run))

    assert "Epoch 3/3" in capsys.readouterr().out
    assert history.epoch == [0, 1, 2]
    with (tmp_path / "log.csv").open() as file:
        assert [row["mine"] for row in csv.DictReader(file)] == ["0", "1", "2"]
    events = EventAccumulator(str(tmp_path / "events" / "train"), size_guidance={"tensors": 0})
    events.Reload()
    assert [event.step for event in events.Tensors("epoch_mean_kl")] == [0, 1, 2]
    saved = keras.models.load_model(tmp_path / "2.keras").get_weights()[0]
    np.testing.assert_array_equal(saved, diary.weights[-6])
    assert (tmp_path / "last.weights.h5").exists()


def test_restored_weights_are_the_whole_policy_of_that_iteration(small_config, tmp_path):
    config = small_config(REACH, total_steps=640, eval_episodes=2)
    stop = keras.callbacks.EarlyStopping("iteration", mode="min", patience=2, restore_best_weights=True)
    run = train(config, tmp_path / "run", callbacks=[stop])
    assert run.state.iteration == 3
    assert stop.best_epoch == 0
    one = train(small_config(REACH, total_steps=64, eval_episodes=2), tmp_path / "one")
    restored = load_run(tmp_path / "run")
    for state in (run.state, restored.state):
        np.testing.assert_array_equal(state.theta, one.state.theta)
        for got, expected in zip(state.observation_moments, one.state.observation_moments, strict=True):
            np.testing.assert_array_equal(got, expected)
    # A longer run would cut its episodes later, but these have a limit of their own.
    assert {**run.summary["trained"], "longest_episode": 32} == one.summary["trained"]


def test_weights_that_a_callback_sets_are_the_policy_s(small_config, tmp_path):
    def halve(*_):
        halved.append([weight / 2 for weight in caller.model.get_weights()])
        caller.model.set_weights(halved[-1])

    halved, diary = [], Diary()
    hooks = ("on_train_begin", "on_epoch_begin", "on_epoch_end", "on_train_end")
    caller = keras.callbacks.LambdaCallback(**dict.fromkeys(hooks, halve))
    run = train(small_config(total_steps=64), tmp_path / "run", callbacks=[caller, diary])
    told = [call[0] for call in diary.calls]
    assert told == ["train_begin", "epoch_begin", "batch_begin", "batch_end", "epoch_end", "train_end"]
    for seen, expected in zip((diary.weights[i] for i in (0, 1, 4, 5)), halved, strict=True):
        np.testing.assert_array_equal(seen, expected[0])
    np.testing.assert_array_equal(diary.weights[2], diary.weights[1])
    for each in (run, load_run(tmp_path / "run")):
        np.testing.assert_array_equal(network_weights(each), halved[-1][0])


def test_restored_weights_go_before_the_best_of_periodic_evaluations(small_config, tmp_path):
    stop = keras.callbacks.EarlyStopping("iteration", mode="min", patience=1, restore_best_weights=True)
    config = small_config(total_steps=640, eval_interval=64, periodic_eval_episodes=1)
    diary = Diary()
    run = train(config, tmp_path / "run", callbacks=[diary, stop])
    np.testing.assert_array_equal(network_weights(run), diary.weights[4])
    assert run.summary["best_at_steps"] is None


def test_a_callback_can_stop_before_the_first_iteration(small_config, tmp_path):
    stop = keras.callbacks.LambdaCallback(on_train_begin=lambda _: setattr(stop.model, "stop_training", True))
    run = train(small_config(eval_episodes=0), tmp_path / "run", callbacks=stop)
    assert run.state.iteration == 0


class Pruned(Exception):
    """As a search raises to end a trial."""


class Broken(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            raise Pruned("no hope")


def test_what_a_callback_raises_comes_through_and_leaves_a_checkpoint(small_config, tmp_path):
    config = small_config(total_steps=256)
    with pytest.raises(Pruned, match="no hope") as raised:
        train(config, tmp_path / "run", callbacks=[Broken()])
    assert raised.value.__notes__ == [
        "raised by the callback Broken in on_epoch_end",
        f"go on with trpo_tf.resume({str(tmp_path / 'run')!r})",
    ]
    assert load_run(tmp_path / "run").state.iteration == 2
    diary = Diary()
    resume(tmp_path / "run", callbacks=[diary])
    assert [call[1] for call in diary.calls if call[0] == "epoch_end"] == [2, 3]


REFUSED = {
    "LearningRateScheduler can't be used: .* no learning rate": lambda: keras.callbacks.LearningRateScheduler(float),
    "ReduceLROnPlateau can't be used: .* no learning rate": keras.callbacks.ReduceLROnPlateau,
    "BackupAndRestore can't be used: .* use `resume`": lambda: keras.callbacks.BackupAndRestore("backup"),
    "SwapEMAWeights can't be used: there is no Keras optimizer": keras.callbacks.SwapEMAWeights,
    "TerminateOnNaN can't be used: there is no loss": keras.callbacks.TerminateOnNaN,
    "TensorBoard can't be used: write_steps_per_second": lambda: keras.callbacks.TensorBoard(
        write_steps_per_second=True
    ),
    "EarlyStopping can't be used: .* mean_return .* mode='max' or mode='min'": lambda: keras.callbacks.EarlyStopping(
        "mean_return"
    ),
    "is no keras.callbacks.Callback; give an instance": lambda: keras.callbacks.EarlyStopping,
    "wrap a function: keras.callbacks.LambdaCallback": lambda: print,
    r"LearningRateScheduler can't be used:.*": lambda: [
        keras.callbacks.CallbackList([keras.callbacks.LearningRateScheduler(float)])
    ],
}


@pytest.mark.parametrize("reason", REFUSED)
def test_callbacks_that_can_not_work_are_refused_before_anything_is_written(reason, small_config, tmp_path):
    with pytest.raises(UserError, match=reason):
        train(small_config(), tmp_path / "run", callbacks=[REFUSED[reason]()])
    assert list(Path(tmp_path).iterdir()) == []
