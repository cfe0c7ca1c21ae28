"""The lines of a model card do what it says, whatever form the graph has and whatever the arrays are called."""

import re

import numpy as np
import pytest
import tensorflow as tf

from tests.support.export.hand_made import network
from trpo_tf.export import Evidence, GraphForm, PolicySpec, write_bundle
from trpo_tf.export.targets.table import TARGETS
from trpo_tf.serving import ArraySpec, NoiseSpec, load
from trpo_tf.serving.bundle.manifest import read_manifest

PYTHON = [name for name in TARGETS if not name.startswith("c")]


def written(folder, names, form, targets=PYTHON):
    """A bundle of a policy with inputs of these names, and a dict of observations that it was compared on."""
    networks = [network(3, 2) for _ in names]

    def function(observation, noise):
        parts = observation if len(names) > 1 else {names[0]: observation}
        total = sum(each(parts[name]) for each, name in zip(networks, names, strict=True))
        return tf.tanh(total / 5.0 + 0.1 * noise)

    parts = tuple(ArraySpec(name, "float32", (3,), -2.0, 2.0) for name in names)
    spec = PolicySpec(parts, ArraySpec("action", "float32", (2,), -1.0, 1.0), NoiseSpec("normal", (2,)))
    rng = np.random.default_rng(0)
    visited = {name: rng.uniform(-2, 2, (64, 3)).astype(np.float32) for name in names}
    evidence = Evidence(visited if len(names) > 1 else visited[names[0]])
    write_bundle(function, spec, folder, targets=targets, form=form, evidence=evidence)
    return visited


def test_names_that_a_target_can_not_take_are_mapped_and_the_manifest_says_how(tmp_path, monkeypatch):
    names = ("class", "self", "a", "A", "a b", "a_b", "Noise", "\u00e9")
    folder = tmp_path / "bundle"
    visited = written(folder, names, GraphForm(), targets=["savedmodel", "litert", "ort", "c"])
    parity = read_manifest(folder).parity
    assert "inputs" not in parity["onnx"] | parity["ort"]
    for target in ("savedmodel", "litert"):
        inputs = parity[target]["inputs"]
        assert inputs == {
            **{"class": "obs_class", "self": "obs_self", "a": "a_2", "a b": "a_b_2", "\u00e9": "obs__"},
            "noise": "noise_2",
        }
    header = (folder / "c" / "policy.h").read_text()
    assert all(f" {parity['c']['inputs'][name]}[" in header for name in names)
    observation = {name: values[0] for name, values in visited.items()}
    expected = load(folder).act(observation)
    monkeypatch.chdir(folder)
    for lines in python_lines(folder):
        known = {"observation": observation}
        exec(lines, known)
        np.testing.assert_allclose(known["action"], expected, atol=1e-5, err_msg=lines)


def python_lines(folder):
    return re.findall("```python\n(.*?)```", (folder / "MODEL_CARD.md").read_text(), re.DOTALL)


@pytest.mark.parametrize(
    ("names", "noise", "batch"),
    [
        (("obs",), "optional", 3),
        (("obs",), "required", 1),
        (("place", "Goal's"), "required", 3),
        (("place", "Goal's"), "none", 2),
    ],
)
def test_every_snippet_acts(names, noise, batch, tmp_path, monkeypatch):
    folder = tmp_path / "bundle"
    visited = written(folder, names, GraphForm(noise=noise, batch=batch))
    one = {name: values[5] for name, values in visited.items()}
    observation = one if len(names) > 1 else one[names[0]]
    repeated = {name: np.repeat(values[None], batch, 0) for name, values in one.items()}
    expected = load(folder).act_batch(repeated if len(names) > 1 else repeated[names[0]])[0]
    monkeypatch.chdir(folder)
    snippets = python_lines(folder)
    assert len(snippets) == len(PYTHON)
    for lines in snippets:
        known = {"observation": observation}
        exec(lines, known)
        np.testing.assert_allclose(known["action"], expected, atol=0.1 if "int8" in lines else 1e-5, err_msg=lines)
        assert ("sample" in known) == (noise != "none" and "serving.load" in lines)
