"""Policies with state: one step in every target, proven along sequences in which each carries its own state."""

import functools
import io
import json
import re
import subprocess
from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from tests.support.export.c99_cases import STRICT, on_the_board, sanitized
from tests.support.export.replaced_target import replace_target
from tests.support.export.stateful import (
    GAIN,
    KINDS,
    STATEFUL,
    F,
    Q,
    R,
    converted,
    history,
    one_episode_after_another,
    reference_cases,
)
from trpo_tf import serving
from trpo_tf.export import Evidence, ExportError, GraphForm, ParityError, PolicySpec, write_bundle
from trpo_tf.export.bundle.model_card import CARD_FILE
from trpo_tf.export.c99 import HEADER_FILE, c_sources, compiled_step
from trpo_tf.export.c99.c_files import state_memories
from trpo_tf.export.litert.convert import to_litert
from trpo_tf.export.litert.interpreter import litert_step
from trpo_tf.export.ort.convert import to_ort
from trpo_tf.export.parity.compare import compare_sequences
from trpo_tf.export.parity.compare_target import compare_target
from trpo_tf.export.parity.reference.evidence import make_reference_cases
from trpo_tf.export.parity.table import columns_of, proof_rows
from trpo_tf.export.parity.verify import verify_targets
from trpo_tf.export.policy.outputs import all_outputs, of_inputs
from trpo_tf.export.targets.session import session_outputs
from trpo_tf.export.targets.table import TARGETS
from trpo_tf.serving import ArraySpec, BundleError, GraphSpec, Manifest, NoiseSpec, StateSpec
from trpo_tf.serving.bundle.golden import STEPS
from trpo_tf.serving.bundle.manifest import read_manifest
from trpo_tf.serving.runtime.noise import draw_noise
from trpo_tf.serving.runtime.onnx_runtime import open_session
from trpo_tf.serving.runtime.sequences import run_sequences
from trpo_tf.serving.verify import agree, check_golden, verify

OBS, ACTION, NOISE = (
    ArraySpec("obs", "float32", (3,)),
    ArraySpec("action", "float32", (2,), -1, 1),
    NoiseSpec("normal", (2,)),
)
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


def golden(folder):
    with np.load(folder / "golden.npz") as archive:
        return dict(archive)


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


def steps_of(policy, count):
    """The first observations [1, ...] that a policy meets, each as a dict by name."""
    rows = policy.visited if isinstance(policy.visited, dict) else {policy.spec.observation[0].name: policy.visited}
    return [{name: values[step : step + 1] for name, values in rows.items()} for step in range(count)]


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


DRIFTS = {
    "that is off by a thousandth": lambda found, inputs: found | {"next_mean": found["next_mean"] * np.float32(1.001)},
    "that is of another episode": lambda found, inputs: found | {"next_cov": found["next_cov"][::-1]},
    "that is not carried on": lambda found, inputs: found | {"next_mean": inputs["mean"]},
}


def test_a_target_that_carries_its_state_is_taken():
    made = reference_cases("kalman")
    answers = made.reference.recurrent.answers
    proof = compare_target("right", made.reference.act, made, exact=True, samples=True, step=answers)
    assert proof.failure(made) is None


@pytest.mark.parametrize("which", DRIFTS)
def test_a_target_with_another_state_is_refused(which):
    """Its action for a given state is right, so that only its state tells."""
    made = reference_cases("kalman")
    answers = made.reference.recurrent.answers

    def step(inputs, noise):
        return DRIFTS[which](answers(inputs, noise), inputs)

    proof = compare_target("wrong", made.reference.act, made, exact=True, samples=True, step=step)
    assert proof.cases.complete
    assert "drifts from the trained policy: along 16 steps its state differs by" in proof.failure(made)


def test_a_target_that_keeps_its_state_through_a_reset_is_refused():
    made = reference_cases("kalman")
    recurrent = made.reference.recurrent

    def step(inputs, noise):
        return recurrent.answers(inputs | {"reset": np.zeros_like(inputs["reset"])}, noise)

    found = compare_sequences(step, made.sequences(exact=True, noise=False), recurrent.spec)
    assert not found.complete
    assert found.max_difference > 0.1


class Cart:
    """A cart that the Kalman filter's policy steers by its place alone; what is rewarded is to be at zero."""

    def reset(self, *, seed=None):
        self.state, self.steps = np.array([2.0 - 0.1 * (seed or 0), 0.5]), 0
        return self.state[:1].astype(np.float32), {}

    def step(self, action):
        self.state = F.astype(float) @ self.state + [0, 0.1 * float(action[0])]
        self.steps += 1
        return self.state[:1].astype(np.float32), -abs(self.state[0]), False, self.steps == 40, {}


def test_episodes_carry_the_state(tmp_path):
    policy = STATEFUL["kalman"]
    evidence = Evidence(environment=Cart(), episodes=3)
    manifest = write_bundle(policy.function, policy.spec, tmp_path / "bundle", evidence=evidence, targets=["onnx"])
    figures = manifest.parity["onnx"]
    assert (figures["episodes"], figures["episode_steps_equal"], figures["episode_steps"]) == (3, 120, 120)
    session, environment, total = serving.load(tmp_path / "bundle").start(), Cart(), 0.0
    for seed in range(3):
        session.reset()
        observation, _ = environment.reset(seed=seed)
        for _ in range(40):
            observation, reward, *_ = environment.step(session.act(observation))
            total += reward / 3
    assert figures["return"] == pytest.approx(total, rel=1e-5)
    without_force = sum(-abs(2.0 + 0.05 * step) for step in range(40))
    assert total > 0.5 * without_force


def test_further_outputs_are_functions_of_the_state_too(tmp_path):
    policy = STATEFUL["history"]

    def oldest(observation, state, reset, noise):
        return state["history"][:, 0]

    manifest = write_bundle(
        policy.function, policy.spec, tmp_path / "bundle", form=GraphForm(outputs={"oldest": oldest}), targets=["onnx"]
    )
    assert [spec.name for spec in manifest.outputs] == ["action", "oldest", "next_history"]
    found = golden(tmp_path / "bundle")
    kept = ~found["reset"]
    assert np.array_equal(found["oldest"][kept], found["history"][kept, 0])
    assert not found["oldest"][found["reset"]].any()  # the initial state's, since a reset comes before any function


@pytest.mark.parametrize("form", [GraphForm(noise="none"), GraphForm(noise="required"), GraphForm(batch=4)])
def test_other_forms_of_the_graph_carry_a_state(form, tmp_path):
    policy = STATEFUL["history"]
    write_bundle(policy.function, policy.spec, tmp_path / "bundle", form=form, targets=["onnx"])
    assert verify(tmp_path / "bundle").max_difference < 1e-5
    loaded = serving.load(tmp_path / "bundle")
    if form.batch:
        with pytest.raises(ValueError, match="exported for batches of 4, not 1"):
            loaded.start()
    session = loaded.start(form.batch or 1)
    rows = np.repeat(policy.visited[:1], form.batch or 1, 0)
    first = session.act(rows)
    session.reset()
    assert np.array_equal(session.act(rows), first)
    if form.noise == "none":
        with pytest.raises(ValueError, match="exported without noise"):
            session.act(rows, deterministic=False)


def step_of(next_state):
    return lambda observation, state, reset, noise: (tf.tanh(noise + observation[:, :2]), next_state(state))


@pytest.mark.parametrize("where", [sanitized, on_the_board])
@pytest.mark.parametrize("name", KINDS)
def test_c_carries_its_state_from_whatever_memory_held_before(name, where, tmp_path):
    spec = STATEFUL[name].spec
    inputs, noise, actions = one_episode_after_another(name)
    sources = c_sources(converted(name), spec)
    found = where(sources, spec, inputs, noise, tmp_path)
    assert agree(found if where is sanitized else found.actions, actions)


def test_c_computes_a_gate_once_for_action_and_next_state():
    body = c_sources(converted("lstm"), STATEFUL["lstm"].spec)["policy.c"].partition(b"void policy_act(")[2]
    assert body.count(b"sigmoid(") == 3  # of which the action and the next state are made


def test_the_state_in_c_is_the_caller_s_and_one_of_zeros_starts(tmp_path):
    """Two episodes in turns with two states are what each is by itself."""
    spec = STATEFUL["counter"].spec
    sources = c_sources(converted("counter"), spec)
    assert b" * State: 16 bytes of the caller's for each episode." in sources[HEADER_FILE]
    main = r"""
        #include "policy.h"
        #include <stdio.h>
        int main(void)
        {
            static policy_state one, other;
            const float obs[POLICY_OBS] = {0.1f, 0.2f, 0.3f};
            int32_t action[POLICY_ACTION];
            for (int i = 0; i < 3; ++i) {
                policy_act(&one, obs, 0, action);
            }
            policy_act(&other, obs, 0, action);
            printf("%d %d ", (int)one.steps[0], (int)other.steps[0]);
            policy_reset(&one);
            policy_act(&one, obs, 0, action);
            printf("%d", (int)one.steps[0]);
            return 0;
        }
    """
    for file, content in {**sources, "main.c": main.encode()}.items():
        (tmp_path / file).write_bytes(content)
    command = ["cc", *STRICT, "policy.c", "main.c", "-o", "main", "-lm"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    told = subprocess.run(["./main"], cwd=tmp_path, check=True, timeout=60, capture_output=True, text=True).stdout
    assert told == "3 1 1"


def test_names_of_state_that_c_can_t_have_become_others(tmp_path):
    """In no version of C, and in C++, which includes the header."""
    odd = ("running", "double", "2nd", "a-b", "A B", "int", "int_")
    keywords = ("bool", "typeof", "nullptr", "linux", "class", "new", "template", "xor", "requires", "wchar_t")
    names = (*odd, *keywords, "观察", "*/ x")
    spec = PolicySpec((OBS,), ACTION, NOISE, tuple(StateSpec(name, "float32", ()) for name in names))
    fields = [memory.name for memory in state_memories(spec).values()]
    told = [field.removeprefix("state->") for field in fields]
    assert told[: len(odd)] == ["running_", "double_", "_2nd", "a_b", "a_b_2", "int_", "int__2"]
    members = "".join(f"float {field}[1];" for field in told)
    (tmp_path / "state.c").write_text(f"typedef struct {{{members}}} state;")
    for compiler in (["gcc", "-std=gnu2x"], ["gcc", "-std=c99"], ["g++", "-xc++", "-std=gnu++20"]):
        subprocess.run([*compiler, "-Werror", "-fsyntax-only", "state.c"], cwd=tmp_path, check=True)


@pytest.mark.parametrize("name", KINDS)
def test_a_reset_ignores_a_state_of_nan_and_of_the_largest_numbers(name):
    """A product with zero would not: NaN times zero is NaN."""
    policy, spec = STATEFUL[name], STATEFUL[name].spec
    session = open_session(converted(name))
    observation, fresh = steps_of(policy, 1)[0], {each.name: each.initial_rows(1) for each in spec.state}
    worst = {
        each.name: np.full((1, *each.shape), np.nan if each.dtype == "float32" else np.iinfo(np.int64).max).astype(
            each.dtype
        )
        for each in spec.state
    }
    reset = {"reset": np.array([True])}
    for one, other in zip(
        session.run(None, observation | worst | reset), session.run(None, observation | fresh | reset), strict=True
    ):
        assert np.isfinite(one).all()
        assert np.array_equal(one, other)


def stale(step, spec):
    """The step with the state of the step before in the place of the next one; its action is right."""
    last = spec.state[-1]
    return lambda inputs, noise: step(inputs, noise) | {last.next_name: inputs[last.name]}


@pytest.mark.parametrize("name", KINDS)
def test_every_target_carries_the_state(name, tmp_path):
    """Each in floats is proven along the sequences; 8 bits may lose a filter, and say so."""
    pytest.importorskip("ai_edge_litert")
    made, spec = reference_cases(name), STATEFUL[name].spec
    content, function = converted(name), STATEFUL[name].function
    (tmp_path / "policy.ort").write_bytes(to_ort(content)[0])
    manifest = Manifest(name, spec.observation, spec.action, spec.noise, state=spec.state)
    steps = {
        "litert": litert_step(to_litert(function, spec), spec),
        "c": compiled_step(c_sources(content, spec), spec),
        "ort": session_outputs("policy.ort", tmp_path, manifest),
    }
    for noisy in (False, True):
        golden_sequences = made.sequences(exact=True, noise=noisy)
        for target, step in steps.items():
            found = compare_sequences(step, golden_sequences, spec)
            assert (target, found.complete, found.compared > 150) == (target, True, True)
            assert not compare_sequences(stale(step, spec), golden_sequences, spec).complete


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


def test_8_bits_are_judged_by_the_states_that_the_policy_meets():
    """Beyond the observations that it visits they may saturate."""
    made = reference_cases("gru")
    answers, visited = made.reference.recurrent.answers, STATEFUL["gru"].visited
    low, high = visited.min(axis=0), visited.max(axis=0)

    def saturating(inputs, noise):
        return answers(inputs | {"obs": np.clip(inputs["obs"], low, high)}, noise)

    def leaking(inputs, noise):
        found = answers(inputs, noise)
        return found | {"next_hidden": found["next_hidden"] * np.float32(0.7)}

    reasons = []
    for step in (saturating, leaking):
        actor = functools.partial(lambda step, inputs, noise: step(inputs, noise)["action"], step)
        proof = compare_target("8 bits", actor, made, exact=False, samples=True, further=step, step=step)
        reasons.append(proof.failure(made))
    assert reasons[0] is None
    assert "loses the policy in 8 bits: its 'next_hidden' errs" in reasons[1]


def test_sequences_of_played_episodes_are_steps_that_follow_each_other():
    policy, spec = STATEFUL["kalman"], STATEFUL["kalman"].spec
    evidence, outputs = Evidence(environment=Cart(), episodes=3), all_outputs(policy.function, spec)
    manifest = Manifest("kalman", spec.observation, spec.action, spec.noise, state=spec.state)
    function = of_inputs(policy.function, spec)
    made = make_reference_cases(function, outputs, manifest, evidence, converted("kalman"))
    cases = made.visited_sequences
    assert (len(cases), cases.observations["reset"].sum()) == (128, 4)  # 3 of 40 steps, and the first 8 once more
    _, found = run_sequences(made.reference.recurrent.answers, cases.observations, cases.noise, spec.state)
    np.testing.assert_allclose(found["next_mean"], cases.further["next_mean"], rtol=1e-5, atol=1e-6)


def test_a_state_that_8_bits_lose_is_refused_and_left_out_of_all(tmp_path):
    """Two sums that differ in scale pass one product, in which 8 bits round the smaller to zero."""

    def act(observation, state, reset, noise):
        sums = state["sums"] @ np.float32([[0.9, 0], [0, 0.9]]) + observation * np.float32([1000, 1])
        return tf.tanh(sums[:, 1:] / 10 + 0.1 * noise), {"sums": sums}

    spec = PolicySpec(
        (ArraySpec("place", "float32", (1,), -3, 3),),
        ArraySpec("force", "float32", (1,), -1, 1),
        NoiseSpec("normal", (1,)),
        (StateSpec("sums", "float32", (2,)),),
    )
    evidence = Evidence(STATEFUL["kalman"].visited)
    with pytest.raises(ParityError, match="onnx-int8 loses the policy in 8 bits: its "):
        write_bundle(act, spec, tmp_path / "bundle", targets=["onnx-int8"], evidence=evidence)
    said: list[str] = []
    folder = tmp_path / "all"
    manifest = write_bundle(act, spec, folder, targets=["all"], evidence=evidence, observer=said.append)
    lost = {line.split()[0] for line in said if "is left out: it loses the policy in 8 bits" in line}
    assert "onnx-int8" in lost
    assert manifest.parity.keys() == TARGETS.keys() - lost >= {name for name, each in TARGETS.items() if each.exact}
    assert not any((folder / TARGETS[name].path).exists() for name in lost)
    (table,) = (text for text in said if text.startswith("all targets that were compared:"))
    assert [line.split()[0] for line in table.splitlines()[2:]][-len(TARGETS) :] == list(TARGETS)
    verify_targets(folder)


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


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_without_a_way_to_carry_a_state_says_so(name, tmp_path, monkeypatch):
    policy = history()
    replace_target(monkeypatch, name, open_step=None)
    with pytest.raises(ExportError, match=f"target {name} can't carry this policy: it has no way to carry a state"):
        write_bundle(policy.function, policy.spec, tmp_path / "bundle", targets=[name], evidence=policy.evidence)


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
