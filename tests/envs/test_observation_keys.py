"""Any key of an observation names an input of the policy, whatever else has that name."""

import http.client
import itertools
import json
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf

from trpo_tf import export, serving
from trpo_tf.envs.spaces import observation_spec
from trpo_tf.evaluation.evaluate import evaluate
from trpo_tf.exporting.run_bundle import export_run, further_outputs
from trpo_tf.serving import ArraySpec, NoiseSpec
from trpo_tf.serving.bundle.input_names import input_names
from trpo_tf.serving.runtime.observations import leaves_of
from trpo_tf.serving.verify import read_golden, verify
from trpo_tf.training.train import train

LABYRINTH = "tests.support.environments:Labyrinth-v0"


@pytest.fixture(scope="module")
def run(small_config, tmp_path_factory):
    return train(small_config(LABYRINTH, critic_memory=2, eval_episodes=2), tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    form = export.GraphForm(outputs=further_outputs(run, ["distribution", "value"]))
    export_run(run, folder, targets=["onnx", "savedmodel", "litert", "c"], form=form, episodes=2)
    return folder


@pytest.fixture
def environment():
    env = gym.make(LABYRINTH)
    yield env
    env.close()


def test_names_are_plain_distinct_and_those_that_plain_keys_had_before(environment):
    names = [spec.name for spec in observation_spec(environment.observation_space)]
    assert all(name.isidentifier() and name.isascii() for name in names)
    assert len({name.lower() for name in names}) == len(names)
    assert {"observation", "obs", "batch", "input_graph_input_0", "a_b_c", "value"} <= set(names)
    assert not {"noise", "action", "class", "self"} & set(names)


def test_names_do_not_depend_on_the_order_of_keys():
    paths = (("a", "b"), ("a_b",), ("a b",), ("A b",), ("a_b_2",), ("obs_0",), ("0",), ("noise",), ("obs_noise",))
    named = dict(zip(paths, input_names(paths), strict=True))
    assert named["a_b",] == "a_b"
    assert named["obs_noise",] == "obs_noise"
    for order in itertools.islice(itertools.permutations(paths), 0, None, 5000):
        assert dict(zip(order, input_names(order), strict=True)) == named
    flat = tuple((name,) for name in named.values())
    assert input_names(flat) == tuple(named.values())


def test_in_process_takes_what_the_environment_gives_or_arrays_by_name(bundle, environment):
    policy = serving.load(bundle)
    verify(bundle)
    assert evaluate(policy, LABYRINTH, episodes=2).mean_length == 5
    names = {spec.name for spec in policy.manifest.observation}
    for seed in range(8):
        observation, _ = environment.reset(seed=seed)
        parts = dict(leaves_of(observation))
        assert set(parts) == names
        assert policy.act(observation) == policy.act(parts)


def test_every_part_arrives_at_its_own_input(environment):
    """The environment gives its keys in another order than its space has them."""
    observation, _ = environment.reset(seed=0)
    assert list(observation) != list(environment.observation_space.spaces)
    parts = dict(leaves_of(observation))
    for name, part in (
        ("obs_noise", observation["noise"]),
        ("a_b_c", observation["a"]["b"]["c"]),
        ("a_b_c_2", observation["a"]["b_c"]),
        ("a_b_c_3", observation["a_b"]["c"]),
    ):
        np.testing.assert_array_equal(parts[name], part)


def test_the_saved_model_and_a_server_take_the_manifest_s_names(bundle):
    manifest = serving.load(bundle).manifest
    cases = read_golden((bundle / "golden.npz").read_bytes(), manifest)
    signature = tf.saved_model.load(str(bundle / "saved_model")).signatures["sample"]
    answered = {spec.name: cases.pop(spec.name) for spec in manifest.outputs}
    answers = signature(**{name: tf.constant(array) for name, array in cases.items()})
    np.testing.assert_array_equal(answers["action"], answered["action"])
    np.testing.assert_allclose(answers["output_value"], answered["output_value"], rtol=1e-5, atol=1e-5)

    process = subprocess.Popen(
        [sys.executable, "-m", "trpo_tf", "serve", str(bundle), "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    try:
        port = int(process.stderr.readline().rsplit(":", 1)[-1])
        inputs = [
            {"name": name, "datatype": "FP32", "shape": [3, 2] if name != "noise" else list(array[:3].shape)}
            | {"data": array[:3].ravel().tolist()}
            for name, array in cases.items()
        ]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("POST", f"/v2/models/{manifest.name}/infer", json.dumps({"inputs": inputs}))
        answer = json.loads(connection.getresponse().read())
        connection.close()
    finally:
        process.terminate()
        process.wait(20)
        process.stderr.close()
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    assert outputs["action"] == answered["action"][:3].tolist()
    assert set(outputs) == {"action", "output_logits", "output_value"}


@pytest.mark.parametrize("names", [("a b", "Ü"), ("class", "self"), ("noise/rows", "Identity"), ("A", "a", "a_2")])
def test_a_policy_of_one_s_own_may_name_its_inputs_as_it_likes(names, tmp_path):
    spec = export.PolicySpec(
        tuple(ArraySpec(name, "float32", (2,), -1.0, 1.0) for name in names),
        ArraySpec("action", "float32", (2,)),
        NoiseSpec("normal", (2,)),
    )

    def function(observation, noise):
        return tf.add_n([(2.0**k) * observation[name] for k, name in enumerate(names)]) + noise

    export.write_bundle(function, spec, tmp_path / "bundle", targets=["onnx", "savedmodel", "litert", "c"])
    observation = {name: np.float32([k, 1]) for k, name in enumerate(names)}
    expected = sum((2.0**k) * observation[name] for k, name in enumerate(names))
    np.testing.assert_allclose(serving.load(tmp_path / "bundle").act(observation), expected)
