"""Policies with state: one step in every target, proven along sequences in which each carries its own state."""

import functools
import io
import json
import re
from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from tests.support.export.stateful import (
    ACTION,
    GAIN,
    KINDS,
    NOISE,
    OBS,
    STATEFUL,
    F,
    Q,
    R,
    golden,
    steps_of,
)
from trpo_tf import serving
from trpo_tf.export import ExportError, PolicySpec, write_bundle
from trpo_tf.export.bundle.model_card import CARD_FILE
from trpo_tf.export.parity.table import columns_of, proof_rows
from trpo_tf.export.parity.verify import verify_targets
from trpo_tf.export.policy.outputs import all_outputs
from trpo_tf.export.targets.table import TARGETS
from trpo_tf.serving import BundleError, GraphSpec, Manifest, StateSpec
from trpo_tf.serving.bundle.golden import STEPS
from trpo_tf.serving.bundle.manifest import read_manifest
from trpo_tf.serving.runtime.noise import draw_noise
from trpo_tf.serving.verify import check_golden, verify

EVERY_TARGET = ["previous", "lstm", "gru and history"]
MORE = {"history": ["ort", "c"], **{name: ["all"] for name in EVERY_TARGET}}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Makes the bundle of a policy by name, once, in ONNX, as a SavedModel and in `MORE`; not to be changed."""
    folder = tmp_path_factory.mktemp("stateful")

    @functools.cache
    def bundle(name):
        policy, targets = STATEFUL[name], ["onnx", "savedmodel", *MORE.get(name, [])]
        write_bundle(policy.function, policy.spec, folder / name, targets=targets, evidence=policy.evidence)
        return folder / name

    return bundle


@pytest.mark.parametrize("name", KINDS)
def test_a_bundle_has_its_state_in_format_4_and_verifies(name, bundles):
    spec, manifest = STATEFUL[name].spec, read_manifest(bundles(name))
    document = json.loads((bundles(name) / "manifest.json").read_text())
    assert document["format_version"] == 4
    assert [part["name"] for part in document["state"]] == [part.name for part in spec.state]
    assert manifest.state == spec.state
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert verify(bundles(name)).golden_cases % STEPS == 0
    assert columns_of(manifest.parity)[-2] == "state"
    for figures in (each for each in manifest.parity.values() if each["exact"]):
        assert figures["sequence_steps_equal"] == figures["sequence_steps"] > 100


@pytest.mark.parametrize("name", KINDS)
def test_golden_sequences_begin_with_a_reset_of_any_state_and_have_another_inside(name, bundles):
    found, state = golden(bundles(name)), STATEFUL[name].spec.state
    reset = found["reset"].reshape(-1, STEPS)
    assert reset[:, 0].all()
    assert 0.5 < reset[:, 1:].any(axis=1).mean() <= 1
    for each in state:
        given = found[each.name].reshape(-1, STEPS, *each.shape)
        after = found[each.next_name].reshape(-1, STEPS, *each.shape)
        if each.dtype != "bool":
            assert (given[:, 0] != each.initial_rows(1)).any(axis=tuple(range(1, given[:, 0].ndim))).all()
        np.testing.assert_allclose(given[:, 1:], after[:, :-1], rtol=1e-5, atol=1e-5)


def test_a_stateless_policy_s_manifest_stays_as_it_was():
    document = json.loads(Manifest("policy", (OBS,), ACTION, NOISE).to_json())
    assert document["format_version"] == 3
    assert "state" not in document


def kalman_in_numpy(places):
    """Mean, covariance and force after each place, in float64 by the textbook's five lines."""
    mean, cov, transition = np.zeros(2), np.diag([1.0, 4.0]), F.astype(np.float64)
    for place in places:
        mean, cov = transition @ mean, transition @ cov @ transition.T + Q
        gain = cov @ [1, 0] / (cov[0, 0] + R)
        mean, cov = mean + gain * (place - mean[0]), (np.eye(2) - np.outer(gain, [1, 0])) @ cov
        yield mean, cov, np.clip(-GAIN @ mean, -2, 2)


def test_a_session_is_the_kalman_filter_of_a_textbook(bundles):
    session, places = serving.load(bundles("kalman")).start(), STATEFUL["kalman"].visited[:60]
    for place, (mean, cov, force) in zip(places, kalman_in_numpy(places[:, 0]), strict=True):
        action = session.act(place)
        np.testing.assert_allclose(action, [force], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(session.state["mean"], [mean], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(session.state["cov"], [cov], rtol=1e-4, atol=1e-5)


def test_a_session_counts_and_begins_anew_in_the_rows_that_are_reset(bundles):
    session = serving.load(bundles("counter")).start(batch=3)
    observations = np.zeros((3, 3), np.float32)
    for steps in range(1, 5):
        session.act(observations)
        assert session.state["steps"].tolist() == [steps] * 3
    session.reset(np.array([False, True, False]))
    session.act(observations)
    assert session.state["steps"].tolist() == [5, 1, 5]
    session.reset()
    session.act(observations)
    assert session.state["steps"].tolist() == [1, 1, 1]


def test_a_history_is_filled_with_the_first_observation_and_has_the_newest_last(bundles):
    session, seen = serving.load(bundles("history")).start(), deque(maxlen=3)
    for step, observation in enumerate(STATEFUL["history"].visited[:9]):
        if step in (0, 5):
            session.reset()
            seen.extend([observation] * 3)
        session.act(observation)
        seen.append(observation)
        assert np.array_equal(session.state["history"][0], np.stack(seen))


@pytest.mark.parametrize("name", KINDS)
def test_session_and_step_act_as_tensorflow_does_with_noise_and_without(name, bundles):
    policy, loaded = STATEFUL[name], serving.load(bundles(name))
    spec, session = policy.spec, loaded.start()
    answer = tf.function(all_outputs(policy.function, spec), autograph=False)
    state = expected = loaded.initial_state(1)
    for step, observation in enumerate(steps_of(policy, 24)):
        reset, samples = np.array([step in (0, 7)]), step % 3 == 0
        if reset:
            session.reset()
        noise = draw_noise(spec.noise, 1, np.random.default_rng(step)) * np.float32(samples)
        answers = answer({**observation, **expected, "reset": reset}, noise)
        action, state = loaded.step(observation, state, reset, noise if samples else None)
        row = {part: value[0] for part, value in observation.items()}
        own = session.act(row, deterministic=not samples, rng=np.random.default_rng(step))
        assert np.array_equal(own, action[0])
        np.testing.assert_allclose(action, answers[spec.action.name], rtol=1e-5, atol=1e-5)
        expected = {each.name: answers[each.next_name].numpy() for each in spec.state}
        for each in spec.state:
            np.testing.assert_allclose(state[each.name], expected[each.name], rtol=1e-5, atol=1e-5)
            assert np.array_equal(session.state[each.name], state[each.name])


@pytest.mark.parametrize("name", KINDS)
def test_a_row_of_a_batch_is_an_episode_of_its_own(name, bundles):
    policy, loaded = STATEFUL[name], serving.load(bundles(name))
    together, alone = loaded.start(batch=2), [loaded.start(), loaded.start()]
    seen = steps_of(policy, 40)
    for step in range(20):
        pair = (seen[step], seen[step + 20])
        if step == 6:
            together.reset(np.array([False, True]))
            alone[1].reset()
        actions = together.act({part: np.concatenate([one[part] for one in pair]) for part in pair[0]})
        for row, (session, one) in enumerate(zip(alone, pair, strict=True)):
            action = session.act({part: value[0] for part, value in one.items()})
            np.testing.assert_allclose(actions[row], action, rtol=1e-5, atol=1e-6)


def test_an_observation_that_is_refused_leaves_the_session_as_it_was(bundles):
    session, untouched = (serving.load(bundles("history")).start() for _ in range(2))
    first, second = np.ones(3, np.float32), np.full(3, 2, np.float32)
    for each in (session, untouched):
        each.act(first)
    for wrong, reason in (
        (np.float32([np.nan, 0, 0]), "not finite"),
        (np.zeros(4, np.float32), r"shape \[4\], the policy takes \[3\]"),
        (np.zeros(3), "dtype float64"),
    ):
        with pytest.raises(ValueError, match=reason):
            session.act(wrong)
    assert np.array_equal(session.act(second), untouched.act(second))
    assert np.array_equal(session.state["history"], untouched.state["history"])
    with pytest.raises(ValueError, match=r"rows must be bool of shape \[1\]"):
        session.reset(np.array([1]))
    with pytest.raises(ValueError, match="batch must be at least 1"):
        serving.load(bundles("history")).start(batch=0)


def test_act_says_what_keeps_a_state_and_step_what_is_wrong_with_it(bundles):
    policy = serving.load(bundles("history"))
    observation, state = np.zeros((2, 3), np.float32), policy.initial_state(2)
    for act in (lambda: policy.act(observation[0]), lambda: policy.act_batch(observation)):
        with pytest.raises(ValueError, match=r"has state \(history\), .* use session = policy.start\(\)"):
            act()
    past = state["history"]
    for wrong, reason in (
        ({}, "state must be a dict of history, not "),
        ({"history": past, "more": past}, "state must be a dict of history, not history, more"),
        ({"history": past[:, :2]}, r"state 'history' has shape \[2, 2, 3\], the policy takes \[batch, 3, 3\]"),
        ({"history": past.astype(np.float64)}, "state 'history' has dtype float64"),
        ({"history": past + np.float32(np.inf)}, "state 'history' holds a value that is not finite"),
        ({"history": past[:1]}, "'history' has 1 rows, and the observation 2"),
    ):
        with pytest.raises(ValueError, match=reason):
            policy.step(observation, wrong)
    for reset, reason in (
        (np.array([1, 0]), "reset has dtype int64"),
        (np.array([True]), "'reset' has 1 rows, and the observation 2"),
        (np.array(True), r"reset has shape \[\], the policy takes \[batch\]"),
    ):
        with pytest.raises(ValueError, match=reason):
            policy.step(observation, state, reset)


def step_of(next_state):
    return lambda observation, state, reset, noise: (tf.tanh(noise + observation[:, :2]), next_state(state))


@pytest.mark.parametrize("name", EVERY_TARGET)
def test_all_targets_are_proven_along_sequences(name, bundles):
    """Those in 8 bits lose nothing of a cell's state where it is computed in floats, and little in C."""
    pytest.importorskip("ai_edge_litert")
    parity = read_manifest(bundles(name)).parity
    assert parity.keys() == TARGETS.keys()
    for target, figures in parity.items():
        assert (target, figures["sequence_steps"] > 100) == (target, True)
        assert figures["sequence_steps_equal"] == figures["sequence_steps"] or figures["error"] < 0.2
        if name != "previous" and target in {"onnx-int8", "onnx-int8-dynamic", "litert-int8"}:
            assert (target, figures["state_max_difference"] < 1e-5) == (target, True)
            assert (target, figures["error"] > 1e-4) == (target, True), "the other products are in 8 bits"
    assert [row[0] for row in proof_rows(parity, {})] == list(TARGETS)
    assert verify_targets(bundles(name)).parity.keys() == TARGETS.keys()


STATE = (StateSpec("past", "float32", (2,)),)
WRONG = {
    "function must be a function of four arguments, observation, state, reset and noise": lambda observation, noise: 0,
    "function must give two things, the action and a dict of the next state": lambda *_: tf.zeros((1, 2)),
    "function gives a next state of future, and the spec's state is past": step_of(lambda s: {"future": s["past"]}),
    "function gives a next state of nothing": step_of(lambda state: {}),
    r"gives next_past as float32\[None, 1\], and the spec's next_past is float32\[None, 2\]": step_of(
        lambda state: {"past": state["past"][:, :1]}
    ),
    "gives next_past as int32": step_of(lambda state: {"past": tf.cast(state["past"], tf.int32)}),
}


@pytest.mark.parametrize("reason", WRONG)
def test_a_step_function_that_does_not_fit_its_spec_is_refused_at_once(reason, tmp_path):
    with pytest.raises(ExportError, match=reason):
        write_bundle(WRONG[reason], PolicySpec((OBS,), ACTION, NOISE, STATE), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


SPECS = {
    "state must be a tuple of StateSpec": lambda: PolicySpec((OBS,), ACTION, NOISE, STATE[0]),
    "'reset' is there twice": lambda: PolicySpec((replace(OBS, name="reset"),), ACTION, NOISE, STATE),
    "'next_past' is there twice": lambda: PolicySpec((replace(OBS, name="next_past"),), ACTION, NOISE, STATE),
    "'noise' is there twice": lambda: PolicySpec((OBS,), ACTION, NOISE, (StateSpec("noise", "bool", ()),)),
    "initial of 'x' must be a number of float32, or one for each of its 2": lambda: StateSpec(
        "x", "float32", (2,), [1, 2, 3]
    ),
    r"or one for each of its 6 elements of shape \[6\]; it is \[1.0\]": lambda: StateSpec("x", "float32", (6,), [1.0]),
    r"elements of shape \[3, 2\]; it is array": lambda: StateSpec("x", "float32", (3, 2), np.arange(6).reshape(2, 3)),
    "initial of 'x' must be a number of int32": lambda: StateSpec("x", "int32", (), 0.5),
    "initial of 'x' must be a number of uint8": lambda: StateSpec("x", "uint8", (), 256),
    "initial of 'x' must be a number of float32.*inf": lambda: StateSpec("x", "float32", (), np.inf),
    "initial of 'x' .*None": lambda: StateSpec("x", "float32", (), None),
}


@pytest.mark.parametrize("reason", SPECS)
def test_specs_that_no_manifest_can_hold_are_refused(reason):
    with pytest.raises((ExportError, BundleError), match=reason):
        SPECS[reason]()


def test_initial_values_are_one_number_where_they_are_equal():
    assert StateSpec("x", "float32", (2, 2), np.ones((2, 2))) == StateSpec("x", "float32", (2, 2), 1.0)
    spec = StateSpec("x", "int32", (2, 2), [[1, 2], [3, 4]])
    assert spec.initial == (1, 2, 3, 4)
    assert spec.initial_rows(3).tolist() == [[[1, 2], [3, 4]]] * 3
    assert spec.initial_rows(3).dtype == np.int32


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"state": []}, "state must be a list of objects"),
        ({"state": None}, "state must be a list of objects"),
        ({"initial": "0"}, r"state\[0\].initial must be a finite number of float32"),
        ({"initial": [0.0]}, r"state\[0\].initial must be a finite number of float32"),
        ({"initial": 1e300}, "initial of 'history' must be a number of float32"),
        ({"dtype": "complex64"}, r"state\[0\].dtype must be one of"),
        ({"name": "obs"}, "the names must be one for each array"),
        ({"shape": [0]}, r"state\[0\].shape must be a list"),
    ],
)
def test_a_damaged_state_in_a_manifest_is_named(changed, reason):
    spec = STATEFUL["history"].spec
    manifest = Manifest("m", spec.observation, spec.action, spec.noise, GraphSpec(), state=spec.state)
    document = json.loads(manifest.to_json()) | {"files": {"policy.onnx": {"size": 1, "sha256": "0"}}}
    if "state" in changed:
        document |= changed
    else:
        document["state"][0] |= changed
    with pytest.raises(BundleError, match=reason):
        Manifest.from_json(json.dumps(document))


def test_a_changed_golden_state_is_found(bundles, tmp_path):
    policy, found = serving.load(bundles("kalman")), golden(bundles("kalman"))
    found["next_mean"] = found["next_mean"] + np.float32(1e-3)
    with pytest.raises(BundleError, match=r"differs from its golden cases in 'next_mean' by 0\.001"):
        check_golden(policy, archive(found))
    with pytest.raises(BundleError, match="whole sequences of 16 steps"):
        check_golden(policy, archive({name: array[:-1] for name, array in golden(bundles("kalman")).items()}))
    broken = golden(bundles("kalman"))
    broken["mean"][1:16] = broken["mean"][0]
    broken["reset"][:16] = True  # each row alone is right, and the sequence is another
    del broken["next_cov"]
    with pytest.raises(BundleError, match="can't be read"):
        check_golden(policy, archive(broken))


def archive(arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_the_model_card_s_lines_act_and_say_what_is_carried(bundles, monkeypatch):
    policy, folder = STATEFUL["history"], bundles("history")
    card = (folder / CARD_FILE).read_text()
    assert "| state | history | float32 | [3, 3] |  |" in card
    assert "policy_state state;" in card
    first = serving.load(folder).start().act(policy.visited[0])
    monkeypatch.chdir(folder)
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(snippets) == 3
    for lines in snippets:
        known = {"observation": policy.visited[0]}
        exec(lines, known)
        np.testing.assert_allclose(known["action"], first, rtol=1e-5, atol=1e-5)
