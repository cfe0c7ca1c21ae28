"""Targets of policies with state: each carries its own state as the policy does, or is refused."""

import functools
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from tests.support.export.c99_cases import STRICT, on_the_board, sanitized
from tests.support.export.replaced_target import replace_target
from tests.support.export.stateful import (
    ACTION,
    KINDS,
    NOISE,
    OBS,
    STATEFUL,
    F,
    converted,
    golden,
    history,
    one_episode_after_another,
    reference_cases,
    steps_of,
)
from trpo_tf import serving
from trpo_tf.export import Evidence, ExportError, GraphForm, ParityError, PolicySpec, write_bundle
from trpo_tf.export.c99 import HEADER_FILE, c_sources, compiled_step
from trpo_tf.export.c99.c_files import state_memories
from trpo_tf.export.litert.convert import to_litert
from trpo_tf.export.litert.interpreter import litert_step
from trpo_tf.export.ort.convert import to_ort
from trpo_tf.export.parity.compare import compare_sequences
from trpo_tf.export.parity.compare_target import compare_target
from trpo_tf.export.parity.reference.evidence import make_reference_cases
from trpo_tf.export.parity.verify import verify_targets
from trpo_tf.export.policy.outputs import all_outputs, of_inputs
from trpo_tf.export.targets.session import session_outputs
from trpo_tf.export.targets.table import TARGETS
from trpo_tf.serving import ArraySpec, Manifest, NoiseSpec, StateSpec
from trpo_tf.serving.runtime.onnx_runtime import open_session
from trpo_tf.serving.runtime.sequences import run_sequences
from trpo_tf.serving.verify import agree, verify

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
    names = (*odd, *keywords, "errno", "complex", "uint8_t", "观察", "*/ x")
    spec = PolicySpec((OBS,), ACTION, NOISE, tuple(StateSpec(name, "float32", ()) for name in names))
    fields = [memory.name for memory in state_memories(spec).values()]
    told = [field.removeprefix("state->") for field in fields]
    assert told[: len(odd)] == ["running_", "double_", "_2nd", "a_b", "a_b_2", "int_", "int__2"]
    members = "".join(f"float {field}[1];" for field in told)
    headers = "".join(f"#include <{name}.h>\n" for name in ("complex", "errno", "stdint"))
    (tmp_path / "state.c").write_text(f"{headers}typedef struct {{{members} uint8_t running;}} state;")
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


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_without_a_way_to_carry_a_state_says_so(name, tmp_path, monkeypatch):
    policy = history()
    replace_target(monkeypatch, name, open_step=None)
    with pytest.raises(ExportError, match=f"target {name} can't carry this policy: it has no way to carry a state"):
        write_bundle(policy.function, policy.spec, tmp_path / "bundle", targets=[name], evidence=policy.evidence)
