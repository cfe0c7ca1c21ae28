"""Observations of several arrays, and of pixels, from training to serving."""

import json

import gymnasium as gym
import numpy as np
import onnx
import pytest
import tensorflow as tf

from tests.support.export.untrained import untrained_policy
from trpo_tf import serving
from trpo_tf.config.settings import VineConfig
from trpo_tf.envs.spaces import observation_parts, observation_spec
from trpo_tf.envs.vector.vector_env import SyncVectorEnv
from trpo_tf.errors import UserError
from trpo_tf.evaluation.evaluate import evaluate
from trpo_tf.exporting.in_process import in_process
from trpo_tf.exporting.run_bundle import export_run
from trpo_tf.serving.bundle.golden import read_golden
from trpo_tf.serving.bundle.manifest import read_manifest
from trpo_tf.serving.codecs.v2_json import decode_request, model_metadata
from trpo_tf.serving.runtime.observations import leaves_of
from trpo_tf.serving.verify import verify
from trpo_tf.training.train import resume, train

NAMES = {
    "dict": ("arm_eye", "arm_place", "choice"),  # Gymnasium sorts the keys of a Dict
    "tuple": ("obs_0", "obs_1_0", "obs_1_1"),
    "picture": ("obs",),
}


LEARNING = {"batch_size": 512, "num_envs": 8, "max_kl": 0.05, "fisher": "double-backprop", "eval_episodes": 100}
SETTINGS = {
    "dict": {"total_steps": 6_000} | LEARNING,
    "tuple": {"checkpoint_steps": 64, "eval_episodes": 2},
    "picture": {"total_steps": 4_000} | LEARNING,
}


@pytest.fixture(scope="module", params=list(NAMES))
def exported(request, small_config, tmp_path_factory):
    """Form of the observation, its run, and its bundle."""
    folder = tmp_path_factory.mktemp(request.param)
    env_id = f"tests.support.environments:Signals-{request.param}-v0"
    run = train(small_config(env_id, **SETTINGS[request.param]), folder / "run")
    export_run(run, folder / "bundle", targets=["onnx", "savedmodel"], episodes=3)
    return request.param, run, folder / "bundle"


def test_each_part_is_a_graph_input_of_the_environment_s_own_type(exported):
    form, _, bundle = exported
    graph = onnx.load(bundle / "policy.onnx").graph
    types = {i.name: onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in graph.input}
    specs = serving.load(bundle).manifest.observation
    assert tuple(spec.name for spec in specs) == NAMES[form]
    assert {spec.name: spec.dtype for spec in specs} == {n: types[n].name for n in NAMES[form]}
    expected = {
        "dict": ["uint8", "float64", "int64"],
        "tuple": ["int64", "float64", "uint8"],
        "picture": ["uint8"],
    }
    assert [types[name].name for name in NAMES[form]] == expected[form]


def test_the_bundle_verifies_and_plays(exported):
    form, _, bundle = exported
    assert verify(bundle).golden_cases > 100
    policy = serving.load(bundle)
    assert evaluate(policy, f"tests.support.environments:Signals-{form}-v0", episodes=3).mean_length == 2


def test_in_process_takes_what_the_environment_gives_or_arrays_by_name(exported):
    form, _, bundle = exported
    env = gym.make(f"tests.support.environments:Signals-{form}-v0")
    observation, _ = env.reset(seed=3)
    policy = serving.load(bundle)
    action = policy.act(observation)
    assert env.action_space.contains(action)
    if form == "picture":
        parts = {"obs": observation}
    else:
        leaves = dict(leaves_of(observation))
        assert set(leaves) == set(NAMES[form])
        parts = {name: leaf if leaf.dtype == np.uint8 else leaf.tolist() for name, leaf in leaves.items()}
    np.testing.assert_array_equal(policy.act(parts), action)
    batch = {name: np.stack([part, part]) for name, part in parts.items()}
    np.testing.assert_array_equal(policy.act_batch(batch), [action, action])


@pytest.mark.parametrize("exported", ["dict", "tuple"], indirect=True)
def test_a_missing_part_and_unequal_batches_are_refused(exported):
    _, _, bundle = exported
    policy = serving.load(bundle)
    specs = policy.manifest.observation
    parts = {spec.name: np.zeros((2, *spec.shape), spec.dtype) for spec in specs}
    with pytest.raises(ValueError, match=f"lacks '{specs[1].name}'"):
        policy.act_batch({name: part for name, part in parts.items() if name != specs[1].name})
    with pytest.raises(ValueError, match="different batch sizes"):
        policy.act_batch({**parts, specs[1].name: parts[specs[1].name][:1]})
    name = specs[1].name
    with pytest.raises(ValueError, match=f"observation '{name}' has shape"):
        policy.act_batch({**parts, name: parts[name][:, 0]})


def tensor(spec, array):
    return {
        "name": spec.name,
        "datatype": serving.codecs.datatypes.DATATYPES[spec.dtype],
        "shape": list(array.shape),
        "data": array.ravel().tolist(),
    }


def test_a_request_names_each_part(exported):
    _, _, bundle = exported
    policy = serving.load(bundle)
    manifest = policy.manifest
    cases = read_golden((bundle / "golden.npz").read_bytes(), manifest)
    inputs = [tensor(spec, cases[spec.name][:3]) for spec in manifest.observation]
    request = decode_request(json.dumps({"inputs": inputs}).encode(), manifest)
    np.testing.assert_array_equal(policy.run(request.observations), cases["action"][:3])
    described = [entry["name"] for entry in model_metadata(manifest, "1")["inputs"]]
    assert described == [*(spec.name for spec in manifest.observation), "noise"]
    with pytest.raises(serving.errors.RequestError, match="is missing"):
        decode_request(json.dumps({"inputs": inputs[1:]}).encode(), manifest)
    if len(inputs) > 1:
        shorter = tensor(manifest.observation[0], cases[manifest.observation[0].name][:2])
        with pytest.raises(serving.errors.RequestError, match="one batch size"):
            decode_request(json.dumps({"inputs": [shorter, *inputs[1:]]}).encode(), manifest)


def test_the_saved_model_takes_the_parts_by_name(exported):
    _, _, bundle = exported
    manifest = serving.load(bundle).manifest
    cases = read_golden((bundle / "golden.npz").read_bytes(), manifest)
    sample = tf.saved_model.load(str(bundle / "saved_model")).signatures["sample"]
    feeds = {name: tf.constant(array) for name, array in cases.items() if name != "action"}
    np.testing.assert_array_equal(sample(**feeds)["action"], cases["action"])


@pytest.mark.parametrize("exported", ["tuple"], indirect=True)
def test_a_run_interrupted_ends_as_one_that_was_not(exported, small_config, tmp_path):
    form, run, _ = exported

    class Interrupted(Exception):
        pass

    def interrupt(metrics):
        if metrics["iteration"] == 2:
            raise Interrupted

    config = small_config(f"tests.support.environments:Signals-{form}-v0", **SETTINGS[form])
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", observer=interrupt)
    np.testing.assert_array_equal(resume(tmp_path / "run").state.theta, run.state.theta)


def test_the_vine_branches_where_observations_have_parts(small_config, tmp_path):
    vine = VineConfig(rollout_states=8, branch_length=2)
    config = small_config("tests.support.environments:Signals-tuple-v0", total_steps=200, vine=vine, sampler="vine")
    run = train(config, tmp_path / "run")
    assert run.state.steps > run.state.iteration * 64


@pytest.mark.parametrize("exported", ["dict", "picture"], indirect=True)
def test_every_part_is_learned_from(exported):
    """Of the three things asked, a picture tells one; the other two are then guessed."""
    form, run, _ = exported
    assert run.summary["trained"]["mean_return"] > (5.9 if form != "picture" else 2 * (1 + 1 / 2 + 1 / 3) - 0.4)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (gym.spaces.Dict({}), "is empty"),
        (
            gym.spaces.Tuple((gym.spaces.Discrete(2), gym.spaces.Text(2))),
            "isn't supported; it must be Box, .* Tuple of",
        ),
        (gym.spaces.Box(0, 1, (0,)), "isn't supported; it has no elements$"),
        (gym.spaces.Discrete(2**40), "more than 1,000,000 choices.*make it a Box"),
        (gym.spaces.MultiDiscrete([2, 2**20]), "more than 1,000,000 choices.*make it a Box"),
    ],
)
def test_parts_that_can_not_be_inputs_are_refused(space, message):
    with pytest.raises(UserError, match=message):
        observation_spec(space)


def test_booleans_are_zeros_and_ones():
    policy = untrained_policy(gym.spaces.Box(0, 1, (2, 3), bool), gym.spaces.Box(-1, 1, (2,)))
    as_bytes = untrained_policy(gym.spaces.Box(0, 1, (2, 3), np.uint8), gym.spaces.Box(-1, 1, (2,)))
    seen = np.array([[True, False, True], [False, False, True]])
    action = in_process(policy, "flags").act(seen)
    np.testing.assert_allclose(action, in_process(as_bytes, "bytes").act(seen.astype(np.uint8)), rtol=1e-6)
    assert not np.allclose(action, in_process(policy, "flags").act(~seen))


def test_a_dict_of_one_part_is_that_part():
    space = gym.spaces.Dict({"position": gym.spaces.Box(0, 1, (2,), np.float32)})
    assert list(observation_parts(space)) == ["position"]


@pytest.mark.parametrize("form", [lambda part: {"places": part}, lambda part: (part,)], ids=["dict", "tuple"])
def test_environments_stepped_together_give_the_array_of_one_part(form):
    """The first hundred observations are checked in full, the others are not."""
    plain = gym.make("Acrobot-v1")
    kind = gym.spaces.Dict if isinstance(form(0), dict) else gym.spaces.Tuple
    space = kind(form(plain.observation_space))
    envs = SyncVectorEnv([gym.wrappers.TransformObservation(gym.make("Acrobot-v1"), form, space)])
    np.testing.assert_array_equal(envs.reset(seed=1)[0], [plain.reset(seed=1)[0]])
    for _ in range(120):
        np.testing.assert_array_equal(envs.step(np.array([2]))[0], [plain.step(2)[0]])
    envs.close()


def test_a_bundle_tells_what_was_observed_of_the_parts_that_are_standardised(exported):
    form, run, bundle = exported
    statistics, moments = read_manifest(bundle).statistics, run.state.observation_moments
    assert set(statistics) == {"dict": {"arm_place"}, "tuple": {"obs_1_0"}, "picture": set()}[form]
    for known in statistics.values():
        np.testing.assert_array_equal(known.mean, moments.mean)
        np.testing.assert_allclose(known.stddev, np.sqrt(moments.variance), rtol=1e-3, atol=1e-4)
