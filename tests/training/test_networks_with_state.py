"""Networks of one's own that have a state, from training to the exported bundle."""

import keras
import numpy as np
import pytest

from tests.support.training.resuming import whole_and_resumed
from tests.support.training.sampled_states import assert_states_are_those_of_the_update
from trpo_tf.config.settings import VineConfig
from trpo_tf.errors import UserError
from trpo_tf.evaluation.evaluate import evaluate
from trpo_tf.exporting.run_bundle import export_run
from trpo_tf.learning.learner import build_learner
from trpo_tf.runs.folder import load_run
from trpo_tf.serving import StateSpec, load
from trpo_tf.training.train import train

RECALL, ALTERNATE = "tests.support.environments:Recall-v0", "tests.support.environments:Alternate-v0"


def gated(observed, outputs, units=8):
    """A GRU cell of Keras, and the state that it needs."""
    entry, before = keras.Input((observed,)), keras.Input((units,))
    seen, after = keras.layers.GRUCell(units, seed=1)(entry, before)
    head = keras.layers.Dense(outputs, kernel_initializer=keras.initializers.Orthogonal(seed=2))
    network = keras.Model([entry, before], [head(keras.layers.Concatenate()([entry, seen])), after])
    return network, [StateSpec("hidden", "float32", (units,))]


def attending(observed, outputs, kept=3):
    """Attention over a ring of observations, whose first rows are no zeros, and a sum that leaks."""
    entry, ring, total = keras.Input((observed,)), keras.Input((kept, observed)), keras.Input((2,))
    seeds = iter(range(9))

    def dense(units):
        return keras.layers.Dense(units, kernel_initializer=keras.initializers.Orthogonal(seed=next(seeds)))

    query = keras.layers.Reshape((1, observed))(dense(observed)(entry))
    seen = keras.layers.Flatten()(keras.layers.Attention()([query, ring]))
    leaked = 0.9 * total + dense(2)(seen)
    following = keras.layers.Concatenate(axis=1)([ring[:, 1:], keras.layers.Reshape((1, observed))(entry)])
    output = dense(outputs)(keras.layers.Concatenate()([seen, leaked]))
    network = keras.Model([entry, ring, total], [output, following, leaked])
    first = np.linspace(-1, 1, kept * observed).tolist()
    return network, [StateSpec("ring", "float32", (kept, observed), first), StateSpec("total", "float32", (2,), 0.5)]


def simple(observed, outputs, units=2):
    """The smallest recurrent network."""
    entry, before = keras.Input((observed,)), keras.Input((units,))
    first, last = (keras.initializers.Orthogonal(seed=seed) for seed in (1, 2))
    after = keras.layers.Dense(units, "tanh", kernel_initializer=first)(keras.layers.Concatenate()([entry, before]))
    network = keras.Model([entry, before], [keras.layers.Dense(outputs, kernel_initializer=last)(after), after])
    return network, [StateSpec("hidden", "float32", (units,))]


@pytest.fixture(scope="module")
def recalling(small_config, tmp_path_factory):
    """A run whose policy must say what it saw two steps before; without memory it scores at most 0.9."""
    config = small_config(RECALL, total_steps=5_120, batch_size=512, max_kl=0.05, eval_episodes=10)
    network, state = gated(2, 2)
    return train(config, tmp_path_factory.mktemp("runs") / "recall", policy_network=network, policy_state=state)


def test_a_network_learns_what_to_keep(recalling):
    assert recalling.summary["trained"]["mean_return"] > 0.95


def test_the_run_is_read_back_and_its_bundle_acts_as_it_was_evaluated(recalling, tmp_path):
    again = load_run(recalling.folder)
    np.testing.assert_array_equal(again.policy.theta, recalling.policy.theta)
    export_run(again, tmp_path / "bundle", episodes=2)
    policy = load(tmp_path / "bundle")
    assert [(spec.name, spec.shape) for spec in policy.manifest.state] == [("hidden", (8,))]
    assert evaluate(policy, RECALL, episodes=5).mean_return > 0.95


def test_the_sampler_s_states_are_those_of_the_update(small_config):
    """Through ends of episodes, first episodes that are cut, and from batch to batch; the history is an input, too."""
    config = small_config("CartPole-v1", total_steps=1000, batch_size=256, num_envs=4, history=2)
    network, own = attending(8, 2)
    learner = build_learner(config, network, policy_state=own)
    assert_states_are_those_of_the_update(config, learner, {"history", "ring", "total"})


@pytest.mark.parametrize("algorithm", ["trpo", "nac", "kl-penalty", "vine"])
def test_a_resumed_run_is_the_uninterrupted_one(algorithm, small_config, tmp_path):
    """Fisher products, score products, minibatches, rows of rollouts: the other algorithms combine these."""
    kind = {"algo": algorithm}
    if algorithm == "vine":
        kind = {"vine": VineConfig(rollout_states=2, branch_actions=2, branch_length=2), "sampler": "vine"}
    config = small_config(ALTERNATE, checkpoint_steps=64, total_steps=192, history=2, **kind)

    def networks():
        network, state = (attending if algorithm == "trpo" else simple)(2, 2)
        return {"policy_network": network, "policy_state": state}

    whole, again = whole_and_resumed(config, tmp_path, networks)
    np.testing.assert_array_equal(again.state.theta, whole.state.theta)
    np.testing.assert_array_equal(again.state.value_theta, whole.state.value_theta)
    before = np.concatenate([weight.ravel() for weight in networks()["policy_network"].get_weights()])
    assert not np.array_equal(whole.state.theta, before)


def _changed(**changes):
    """The arguments of a network whose GRU has 8 units, but for some."""
    network, state = gated(4, 2)
    return {"policy_network": network, "policy_state": state} | changes


def _of(*outputs):
    """Arguments with a network of these functions of observation and state."""
    entry, before = keras.Input((4,)), keras.Input((8,))
    after = keras.layers.Dense(8)(keras.layers.Concatenate()([entry, before]))
    output = keras.layers.Dense(2)(after)
    made = [make(output, after) for make in outputs]
    return _changed(policy_network=keras.Model([entry, before], made if len(made) > 1 else made[0]))


def _state(*specs):
    return _changed(policy_state=list(specs))


HIDDEN = StateSpec("hidden", "float32", (8,))

REFUSED = {
    "policy_state must be a list of StateSpec": lambda: _changed(policy_state=["hidden"]),
    "policy_state must be a list of StateSpec, such": lambda: _changed(policy_state=HIDDEN),
    "policy_state 'hidden' must be float32": lambda: _state(StateSpec("hidden", "int32", (8,))),
    "policy_state needs a policy_network": lambda: _changed(policy_network=None),
    r"doesn't take inputs of shape \(None, 4\) and \(None, 9\)": lambda: _state(StateSpec("hidden", "float32", (9,))),
    r"doesn't take inputs of shape \(None, 4\): it takes": lambda: _changed(policy_state=[]),
    r"gives one tensor, \(None, 2\); with this policy_state it must give a list, \[output, next_hidden\]": lambda: _of(
        lambda output, after: output
    ),
    "gives 3 outputs; with this policy_state": lambda: _of(*(lambda output, after: output for _ in range(3))),
    r"next_hidden has shape \(None, 2\); it must be \(None, 8\)": lambda: _of(*2 * [lambda output, after: output]),
    r"output has shape \(None, 8\); it must be \(None, 2\)": lambda: _of(*2 * [lambda output, after: after]),
    "depends on the other rows": lambda: _of(
        lambda output, after: output, lambda output, after: after - keras.ops.mean(after, axis=0)
    ),
    "an array of the policy's memory": lambda: _state(StateSpec("obs", "float32", (8,))),
    "policy_state 'history' needs another name": lambda: _state(StateSpec("history", "float32", (8,))) | {"history": 2},
    "policy_state 'action' needs another name": lambda: _state(StateSpec("action", "float32", (8,))),
    "policy_state must be left out with a memory": lambda: _changed() | {"memory": "gru:4"},
    "fisher must be gauss-newton or score-covariance": lambda: _changed() | {"fisher": "double-backprop"},
}


@pytest.mark.parametrize("told", REFUSED)
def test_a_state_that_is_badly_declared_is_refused_in_a_line(told, small_config, tmp_path):
    arguments = REFUSED[told]()
    settings = {name: arguments.pop(name) for name in ("history", "memory", "fisher") if name in arguments}
    with pytest.raises(UserError, match=told) as refused:
        train(small_config("CartPole-v1", **settings), tmp_path / "run", **arguments)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()
