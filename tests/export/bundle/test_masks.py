"""Bundles of policies with a mask of legal actions: in every target, proven on masks that leave few actions."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from tests.support.export.c99_cases import sanitized
from tests.support.export.masked import MASKED, evidence, masked_policy, visited
from trpo_tf import serving
from trpo_tf.export import Evidence, ExportError, PolicySpec, convert_policy, write_bundle
from trpo_tf.export.c99 import c_sources
from trpo_tf.export.parity.compare_target import compare_target
from trpo_tf.export.parity.reference.evidence import make_reference_cases
from trpo_tf.export.parity.verify import verify_targets
from trpo_tf.export.policy.outputs import all_outputs
from trpo_tf.export.targets.table import TARGETS
from trpo_tf.serving import ArraySpec, BundleError, Manifest, NoiseSpec
from trpo_tf.serving.bundle.manifest import read_manifest
from trpo_tf.serving.bundle.specs import option_counts
from trpo_tf.serving.runtime.action_masks import legal_rows
from trpo_tf.serving.runtime.noise import draw_noise
from trpo_tf.serving.verify import check_golden, verify


def targets_of(name):
    return tuple(TARGETS) if name == "several" else ("onnx", "litert-int8", "c")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """The bundle of each policy, by name, of several choices in all targets; not to be changed."""
    folder = tmp_path_factory.mktemp("masked")
    for name in MASKED:
        policy = masked_policy(name)
        write_bundle(policy.function, policy.spec, folder / name, targets=targets_of(name), evidence=evidence(name))
    return folder


@pytest.mark.parametrize("name", MASKED)
def test_every_target_carries_the_mask_and_its_bundle_says_which_input_it_is(name, bundles):
    manifest = read_manifest(bundles / name)
    document = json.loads((bundles / name / "manifest.json").read_text())
    assert (document["mask"], document["format_version"], manifest.mask) == ("action_mask", 3, "action_mask")
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert set(manifest.parity) == set(targets_of(name))
    for target, figures in manifest.parity.items():
        assert "accepted" not in figures
        assert not TARGETS[target].exact or figures["cases_equal"] == figures["cases"]
    verify(bundles / name)
    verify_targets(bundles / name)


@pytest.mark.parametrize("name", MASKED)
def test_golden_masks_always_allow_an_action_and_often_only_one(name, bundles):
    action, dtype = MASKED[name]
    with np.load(bundles / name / "golden.npz") as golden:
        mask, actions = golden["action_mask"], golden["action"]
    assert mask.dtype == dtype
    assert set(np.unique(mask.astype(float))) == {0.0, 1.0}
    left = np.stack(
        [part.astype(bool).sum(axis=1) for part in np.split(mask, np.cumsum(option_counts(action))[:-1], axis=1)]
    )
    assert left.min() == 1
    assert 0.1 < (left == 1).all(axis=0).mean() < 0.9
    assert (left == 2).any(axis=1).all()
    assert legal_rows(actions, {"action_mask": mask}, "action_mask", action).all()
    # The policy would choose another action where it is not told what is legal, so the masks prove something.
    everything = np.ones_like(mask)
    with np.load(bundles / name / "golden.npz") as golden:
        other = serving.load(bundles / name).infer({"obs": golden["obs"], "action_mask": everything}, golden["noise"])
    assert (other["action"] != actions).mean() > 0.2


def sloppy(illegal_below):
    """A policy that minds its mask unless the first number of the observation is very low."""
    weights = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)

    def scores(observation, noise):
        legal = observation["action_mask"] | (observation["obs"][:, :1] < illegal_below)
        return tf.where(legal, observation["obs"] @ weights + noise, -1e30)

    return scores, lambda observation, noise: tf.argmax(scores(observation, noise), axis=1)


SPEC = PolicySpec(
    (ArraySpec("action_mask", "bool", (4,), 0, 1), ArraySpec("obs", "float32", (3,), -4, 4)),
    ArraySpec("action", "int64", (), 0, 3),
    NoiseSpec("gumbel", (4,)),
    mask="action_mask",
)


def test_a_policy_that_answers_a_masked_action_is_refused(tmp_path):
    scores, function = sloppy(-3)
    with pytest.raises(ExportError, match=r"the policy answers actions that their 'action_mask' forbids, in .* cases"):
        write_bundle(function, SPEC, tmp_path / "bundle", evidence=Evidence(scores=scores))
    scores, function = sloppy(-9)
    write_bundle(function, SPEC, tmp_path / "bundle", targets=("onnx",), evidence=Evidence(scores=scores))


@pytest.mark.parametrize("exact", [True, False])
def test_a_target_that_answers_a_masked_action_fails_the_proof(exact):
    name = "several"
    policy, spec = masked_policy(name), masked_policy(name).spec
    manifest = Manifest(name, spec.observation, spec.action, spec.noise, mask=spec.mask)
    graph, outputs = convert_policy(policy.function, spec), all_outputs(policy.function, spec)
    cases = make_reference_cases(policy.function, outputs, manifest, evidence(name), graph)
    right = serving.Policy(graph, manifest)
    compare_target("right", right.run, cases, exact=exact, samples=True)

    def wrong(observations, noise):
        """Ignores the mask in one row of a hundred."""
        rare = (np.abs(observations["obs"][:, :1] * 1e3) % 100) < 1
        return right.run({**observations, "action_mask": observations["action_mask"] | rare}, noise)

    with pytest.raises(ExportError, match="wrong answers actions that their 'action_mask' forbids"):
        compare_target("wrong", wrong, cases, exact=exact, samples=True)


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_without_an_action_is_an_error_in_process(name, bundles):
    policy, seen = serving.load(bundles / name), visited(name, 6)
    several = " of each of the 3 choices" if name == "several" else ""
    words = f"'action_mask' allows no action{{}}: one option{several} must be 1 or true"
    one = {key: part[0] for key, part in seen.items()}
    none = one | {"action_mask": np.zeros_like(one["action_mask"])}
    session = policy.start()
    for act in (policy.act, session.act):
        np.testing.assert_array_equal(act(one), policy.act_batch(seen)[0])
        for wrong in (none, {key: part.tolist() for key, part in none.items()}):
            with pytest.raises(ValueError, match=words.format("")):
                act(wrong)
        np.testing.assert_array_equal(act(one), policy.act_batch(seen)[0])
    seen["action_mask"][4] = 0
    for act in (policy.act_batch, policy.start(6).act, policy.run, policy.infer):
        with pytest.raises(ValueError, match=words.format(" in row 4")):
            act(seen)
    if name == "several":
        seen["action_mask"][4, 3:] = True  # the first choice, of three options, has none
        with pytest.raises(ValueError, match="in row 4"):
            policy.act_batch(seen)


@pytest.mark.parametrize("name", MASKED)
def test_actions_are_legal_in_process_however_they_are_drawn(name, bundles):
    policy, seen, rng = serving.load(bundles / name), visited(name, 300), np.random.default_rng(0)
    for deterministic in (True, False):
        actions = policy.act_batch(seen, deterministic=deterministic, rng=rng)
        assert legal_rows(actions, seen, "action_mask", policy.manifest.action).all()
    alone = [policy.act({key: part[row] for key, part in seen.items()}) for row in range(50)]
    np.testing.assert_array_equal(alone, policy.act_batch(seen)[:50])


def test_a_saved_model_names_a_mask_without_an_action(bundles):
    act = tf.saved_model.load(str(bundles / "several" / "saved_model")).signatures["serving_default"]
    inputs = {name: tf.constant(array[:2]) for name, array in visited("several").items()}
    act(**inputs)
    mask = inputs["action_mask"].numpy()
    mask[1, :3] = False
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"input .*action_mask.* allows no action in a row"):
        act(**inputs | {"action_mask": tf.constant(mask)})


def test_in_c_the_first_action_answers_a_mask_without_one(tmp_path):
    name = "several"
    policy, spec = masked_policy(name), masked_policy(name).spec
    sources = c_sources(convert_policy(policy.function, spec), spec)
    seen = visited(name, 20)
    seen["action_mask"][::2] = False
    noise = draw_noise(spec.noise, 20, np.random.default_rng(0))
    actions = sanitized(sources, spec, seen, noise, tmp_path)
    assert not actions[::2].any()
    assert legal_rows(actions[1::2], {"action_mask": seen["action_mask"][1::2]}, "action_mask", spec.action).all()


WRONG = {
    r"must be the name of one of several parts of the observation, not 'legal'": "legal",
    r"must be a part of shape \[4\], for each option of each choice, not \[3\]": "obs",
    r"must be the name of one of several parts of the observation, not 3": 3,
}


@pytest.mark.parametrize("words", WRONG)
def test_a_mask_that_does_not_fit_is_named(words):
    with pytest.raises(ExportError, match=f"mask {words}"):
        replace(SPEC, mask=WRONG[words])
    document = json.loads(Manifest("m", SPEC.observation, SPEC.action, SPEC.noise, mask="action_mask").to_json())
    document["files"] = {"policy.onnx": {"size": 1, "sha256": ""}}
    Manifest.from_json(json.dumps(document))
    with pytest.raises(BundleError, match=f"mask {words}; export the bundle again"):
        Manifest.from_json(json.dumps(document | {"mask": WRONG[words]}))


def test_numbers_without_options_have_no_mask():
    with pytest.raises(ExportError, match="mask must be None: an action of float32 without bounds for its choices"):
        PolicySpec(
            SPEC.observation, ArraySpec("action", "float32", (4,)), NoiseSpec("normal", (4,)), mask="action_mask"
        )


def test_golden_cases_with_a_mask_that_forbids_their_action_do_not_verify(bundles):
    policy = serving.load(bundles / "one")
    with np.load(bundles / "one" / "golden.npz") as golden:
        cases = dict(golden)
    cases["action_mask"][0] = 0
    cases["action_mask"][0, (cases["action"][0] - 2 + 1) % 5] = 1
    buffer = io.BytesIO()
    np.savez(buffer, **cases)
    with pytest.raises(BundleError, match="differs from its golden cases"):
        check_golden(policy, buffer.getvalue())
