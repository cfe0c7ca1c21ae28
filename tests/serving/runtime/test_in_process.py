import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.support.paths import BUNDLES
from trpo_tf import serving
from trpo_tf.serving import ArraySpec, BundleError, NoiseSpec
from trpo_tf.serving.bundle.manifest import read_manifest
from trpo_tf.serving.runtime.conversion import as_observations
from trpo_tf.serving.runtime.noise import draw_noise
from trpo_tf.serving.runtime.policy import Policy
from trpo_tf.serving.verify import agree

OBSERVATION = {"discrete": [0.1, -0.2, 0.05, 0.3], "continuous": [0.1, -0.2, 0.05]}


def test_acts_as_the_golden_cases_say(bundle, golden):
    policy, cases = serving.load(bundle), golden(bundle)
    assert agree(policy.run(cases["obs"], cases["noise"]), cases["action"])
    deterministic = np.flatnonzero(~cases["noise"].any(axis=1))
    assert len(deterministic)
    for case in deterministic:
        assert agree(policy.act(cases["obs"][case]), cases["action"][case])
    assert agree(policy.act_batch(cases["obs"][deterministic]), cases["action"][deterministic])


def test_noise_left_out_is_zero_at_any_batch(bundle, golden):
    policy, cases = serving.load(bundle), golden(bundle)
    for batch in (1, 2, len(cases["action"])):
        observations = cases["obs"][:batch]
        zeros = np.zeros_like(cases["noise"][:batch])
        np.testing.assert_array_equal(policy.run(observations), policy.run(observations, zeros))


def test_golden_cases_tell_actions_apart(bundle, golden):
    """Else the tests against them would prove nothing."""
    cases = golden(bundle)
    assert len(np.unique(cases["action"], axis=0)) > 1


def test_an_action_has_the_declared_dtype_and_shape(bundle):
    policy = serving.load(bundle)
    spec = policy.manifest.action
    action = policy.act(OBSERVATION[bundle.name])
    assert (action.dtype, action.shape) == (spec.dtype, spec.shape)
    batch = policy.act_batch([OBSERVATION[bundle.name]] * 3)
    assert batch.shape == (3, *spec.shape)


def test_a_sample_repeats_with_its_generator_and_varies_without(continuous):
    policy, observation = serving.load(continuous), OBSERVATION["continuous"]

    def sample(rng):
        return policy.act(observation, deterministic=False, rng=rng).tolist()

    assert sample(np.random.default_rng(3)) == sample(np.random.default_rng(3))
    assert sample(None) != sample(None)
    assert policy.act(observation).tolist() == policy.act(observation).tolist()


def test_samples_of_a_batch_are_independent(continuous):
    actions = serving.load(continuous).act_batch(
        [OBSERVATION["continuous"]] * 64, deterministic=False, rng=np.random.default_rng(0)
    )
    assert len(np.unique(actions, axis=0)) == 64


def test_answers_from_several_threads_are_those_of_one(discrete, golden):
    policy, cases = serving.load(discrete), golden(discrete)
    pairs = list(zip(cases["obs"], cases["noise"], cases["action"], strict=True)) * 10
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda case: policy.run(case[0][None], case[1][None])[0], pairs)
    assert list(answers) == [action for _, _, action in pairs]


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ([0.1, 0.2, 0.3], r"shape \[3\], the policy takes \[4\]"),
        ([[0.1, 0.2, 0.3, 0.4]], r"shape \[1, 4\], the policy takes \[4\]"),
        (0.5, r"shape \[\]"),
        ([], r"shape \[0\]"),
        ([[1, 2], [3]], "ragged"),
        ([1, 2, 3, float("nan")], "not finite"),
        ([1, 2, 3, float("inf")], "not finite"),
        ([1, 2, 3, 1e39], "not finite"),
        (["1", "2", "3", "4"], "the policy takes float32"),
        ([None] * 4, "the policy takes float32"),
        ([1j, 0, 0, 0], "the policy takes float32"),
        ([True] * 4, "the policy takes float32"),
        (np.zeros(4), r"dtype float64, the policy takes float32: use \.astype\('float32'\)"),
        (np.zeros(4, np.int32), "dtype int32"),
        (np.full(4, np.nan, np.float32), "not finite"),
        (np.ma.masked_array(np.zeros(4, np.float32), [0, 1, 0, 0]), "masked array that hides values"),
    ],
)
def test_a_wrong_observation_is_refused(discrete, observation, message):
    with pytest.raises(ValueError, match=message):
        serving.load(discrete).act(observation)


@pytest.mark.parametrize("observations", [[], [0.1, 0.2, 0.3, 0.4], np.zeros((0, 4), np.float32)])
def test_a_wrong_batch_is_refused(discrete, observations):
    with pytest.raises(ValueError, match=r"the policy takes \[batch, 4\]"):
        serving.load(discrete).act_batch(observations)


def test_python_integers_fit_an_integer_observation_or_are_refused():
    specs = (ArraySpec("obs", "uint8", (2,)),)
    assert as_observations([0, 255], specs, batched=False).dtype == np.uint8
    for value in ([0, 256], [-1, 0]):
        with pytest.raises(ValueError, match="out of range for uint8"):
            as_observations(value, specs, batched=False)
    with pytest.raises(ValueError, match="float64 values"):
        as_observations([0.5, 1], specs, batched=False)


@pytest.mark.parametrize("rng", [7, np.random.RandomState(7)])
def test_a_seed_is_no_generator(continuous, rng):
    policy = serving.load(continuous)
    for act in (policy.act, policy.start().act):
        with pytest.raises(ValueError, match=r"rng must be a generator, numpy\.random\.default_rng\(seed\)"):
            act(OBSERVATION["continuous"], deterministic=False, rng=rng)


@pytest.mark.parametrize("shape", [(2, 2), (1, 2), (3,), (3, 1)])
def test_noise_of_other_rows_is_not_spread_over_the_observations(continuous, shape):
    """The graph would: two rows of noise for one observation give two actions, one row for three gives equal noise."""
    policy, observations = serving.load(continuous), np.zeros((3, 3))
    for act in (policy.run, policy.infer, lambda o, n: policy.step(o, {}, None, n)):
        with pytest.raises(ValueError, match=r"noise must be float32 of shape \[3, 2\], not float32 of shape"):
            act(observations, np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="not float64 of shape"):
        policy.run(observations, np.zeros((3, 2)))


def test_a_policy_is_copied_as_itself_and_never_pickled(continuous):
    policy = serving.load(continuous)
    assert copy.deepcopy([policy])[0] is policy is copy.copy(policy)
    for one in (policy, policy.start()):
        with pytest.raises(TypeError, match="can't be pickled"):
            pickle.dumps(one)


def test_a_copied_session_goes_on_from_the_same_state():
    """With buffers of its own: to try actions ahead must not change the episode."""
    session = serving.load(BUNDLES / "recurrent").start()
    here, elsewhere = np.float32([0.1, 0.2]), np.float32([2, -1])
    expected = [session.act(here) for _ in range(3)]
    session.reset()
    session.act(here)
    for copied in (copy.copy(session), copy.deepcopy(session)):
        assert copied.act(here) == expected[1]
        for _ in range(3):
            copied.act(elsewhere)
    assert [session.act(here) for _ in range(2)] == expected[1:]
    session.reset()
    assert copy.copy(session).act(here) == expected[0]


def test_numpy_may_raise_what_it_else_ignores(discrete):
    """A number that is too small for float32 is zero there, and no error of the observation."""
    with np.errstate(all="raise"):
        assert serving.load(discrete).act([1e-300, -0.2, 0.05, 0.3]) == serving.load(discrete).act([0, -0.2, 0.05, 0.3])


def test_an_action_that_is_not_finite_is_never_returned(continuous):
    with pytest.raises(FloatingPointError, match="not finite"):
        serving.load(continuous).act([1e308, 1e308, 1e308])


@pytest.mark.parametrize(
    ("law", "mean", "variance"),
    [("normal", 0.0, 1.0), ("gumbel", np.euler_gamma, np.pi**2 / 6), ("logistic", 0.0, np.pi**2 / 3)],
)
def test_noise_follows_its_law(law, mean, variance):
    noise = draw_noise(NoiseSpec(law, (3,)), 100_000, np.random.default_rng(0))
    assert (noise.shape, noise.dtype) == ((100_000, 3), np.float32)
    assert noise.mean() == pytest.approx(mean, abs=0.02)
    assert noise.var() == pytest.approx(variance, rel=0.02)


def test_an_unknown_noise_law_is_refused():
    with pytest.raises(ValueError, match="'cauchy' is unknown"):
        draw_noise(NoiseSpec("cauchy", (1,)), 1, np.random.default_rng(0))


def rewrite(bundle, change):
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("key", ["observation", "noise", "action"])
def test_a_manifest_that_the_graph_contradicts_is_refused(damaged, key):
    def rename(document):
        spec = document[key]
        (spec[0] if key == "observation" else spec).update(name="other")

    rewrite(damaged, rename)
    with pytest.raises(BundleError, match=r"has no .*put 'other'"):
        serving.load(damaged)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("observation", {"dtype": "float64"}, r"'obs' as tensor\(float\)\[batch, 4\], not float64\[batch, 4\]"),
        ("observation", {"shape": [3], "low": None, "high": None}, r"'obs' as .*, not float32\[batch, 3\]"),
        ("noise", {"shape": [2, 1]}, r"'noise' as .*, not float32\[batch, 2, 1\]"),
        ("action", {"dtype": "int32"}, r"output 'action' as tensor\(int64\)\[batch\], not int32\[batch\]"),
        ("action", {"shape": [2]}, r"output 'action' as .*, not int64\[batch, 2\]"),
    ],
)
def test_a_manifest_of_other_types_or_shapes_than_the_graph_is_refused(damaged, key, change, message):
    def alter(document):
        spec = document[key]
        (spec[0] if key == "observation" else spec).update(change)

    rewrite(damaged, alter)
    with pytest.raises(BundleError, match=message):
        serving.load(damaged)


def test_a_model_that_is_none_is_refused(damaged):
    content = b"not a model"
    (damaged / "policy.onnx").write_bytes(content)
    entry = serving.bundle.files.FileEntry.of(content)
    rewrite(
        damaged,
        lambda document: document["files"]["policy.onnx"].update(size=entry.size, sha256=entry.sha256),
    )
    with pytest.raises(BundleError, match=r"policy\.onnx is damaged"):
        serving.load(damaged)


@pytest.mark.parametrize(
    ("name", "bytewise", "message"),
    [
        (b"action", b"\xffction", "has a name that is not UTF-8"),
        (b"batch", b"\xffatch", "has a name that is not UTF-8"),
        (b"\x05add:0\x12", b"\x05add:\xff\x12", "ONNX Runtime can't load it"),
    ],
)
def test_a_name_that_is_no_text_is_refused_in_words(discrete, capfd, name, bytewise, message):
    content = (discrete / "policy.onnx").read_bytes()
    assert name in content
    with pytest.raises(BundleError, match=message):
        Policy(content.replace(name, bytewise), read_manifest(discrete))
    assert capfd.readouterr().out == ""


def test_a_changed_model_is_not_loaded(damaged):
    path = damaged / "policy.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match="sha256 differs"):
        serving.load(damaged)
