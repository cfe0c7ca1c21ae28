"""Inputs of a policy with state that do not fit, in runtimes that are not ours."""

import numpy as np
import pytest
import tensorflow as tf

from tests.support.export.stateful import STATEFUL, converted
from trpo_tf.export.c99 import c_sources, compiled_step
from trpo_tf.export.litert.convert import to_litert
from trpo_tf.export.policy.outputs import all_outputs
from trpo_tf.export.targets.saved_model import write_saved_model


def changed_inputs(spec):
    """Inputs of a step, each with one that does not fit, by what is wrong."""
    good = {each.name: np.zeros((2, *each.shape), each.dtype) for each in spec.step_inputs}
    hidden, reset = good["hidden"], good["reset"]
    return {
        "rank": good | {"hidden": hidden[0]},
        "shape": good | {"hidden": hidden[:, :-1]},
        "rows": good | {"hidden": np.tile(hidden, (3, 1))},
        "type": good | {"hidden": hidden.astype(np.float64)},
        "not finite": good | {"hidden": hidden + np.float32([[0], [np.nan]])},
        "reset of another rank": good | {"reset": reset[:, np.newaxis]},
        "reset of other rows": good | {"reset": reset[:1]},
        "reset of another type": good | {"reset": reset.astype(np.int32)},
        "missing": {name: array for name, array in good.items() if name != "hidden"},
    }


SAVED_MODEL_SAYS = {
    "rank": "Shape of tensor hidden .16. is not compatible with expected shape",
    "shape": "Shape of tensor hidden .2,15. is not compatible with expected shape",
    "rows": "input .*hidden.* must have as many rows as the observation",
    "type": "expected to be a float tensor but is a double tensor",
    "not finite": "input .*hidden.* holds a value that is not finite",
    "reset of another rank": "Shape of tensor reset .2,1. is not compatible with expected shape",
    "reset of other rows": "input .*reset.* must have as many rows as the observation",
    "reset of another type": "expected to be a bool tensor but is a int32 tensor",
    "missing": "hidden",
}
LITERT_SAYS = {
    "shape": "not broadcastable",
    "type": "Got value of type FLOAT64 but expected type FLOAT32",
    "reset of another type": "Got value of type INT32 but expected type BOOL",
    "missing": "Invalid number of inputs",
}


def test_a_saved_model_names_a_state_or_reset_that_does_not_fit(tmp_path):
    """A row that starts may hold any state."""
    policy, spec = STATEFUL["gru"], STATEFUL["gru"].spec
    write_saved_model(all_outputs(policy.function, spec), spec, tmp_path / "model")
    model = tf.saved_model.load(str(tmp_path / "model"))

    def act(inputs):
        return model.signatures["serving_default"](**{name: tf.constant(array) for name, array in inputs.items()})

    for what, inputs in changed_inputs(spec).items():
        with pytest.raises((tf.errors.InvalidArgumentError, TypeError), match=SAVED_MODEL_SAYS[what]):
            act(inputs)
    started = changed_inputs(spec)["not finite"] | {"reset": np.array([False, True])}
    assert np.isfinite(act(started)["next_hidden"]).all()


def test_litert_and_c_check_what_they_can():
    """The rest is in the documentation: LiteRT repeats rows, and in both a state that is not finite stays so."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    policy, spec = STATEFUL["gru"], STATEFUL["gru"].spec
    runner = interpreter.Interpreter(model_content=to_litert(policy.function, spec)).get_signature_runner()
    noise = np.zeros((2, *spec.noise.shape), np.float32)
    wrong = changed_inputs(spec)
    for what, words in LITERT_SAYS.items():
        with pytest.raises((ValueError, RuntimeError), match=words):
            runner(**wrong[what], noise=noise)
    in_c = compiled_step(c_sources(converted("gru"), spec), spec)
    for step in (lambda inputs: runner(**inputs, noise=noise), lambda inputs: in_c(inputs, noise)):
        assert np.isnan(step(wrong["not finite"])["next_hidden"]).any(axis=1).tolist() == [False, True]
        begun = step(wrong["not finite"] | {"reset": np.array([True, True])})
        assert np.isfinite(begun["next_hidden"]).all()
