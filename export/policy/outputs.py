"""Join the action, the further outputs and the next state of a policy in one function of its inputs.

A policy with state becomes a function without: its state and `reset` are inputs, and the next state is an output. So
all that converts and compares policies knows one kind of function.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from trpo_tf.export.errors import ExportError
from trpo_tf.export.policy.functions import InferenceFunction, Outputs, PolicyFunction, StepFunction
from trpo_tf.export.policy.spec import DEFAULT_FORM, GraphForm, PolicySpec
from trpo_tf.serving.bundle.specs import RESET, StateSpec
from trpo_tf.serving.runtime.observations import structured


def all_outputs(function: PolicyFunction, spec: PolicySpec, form: GraphForm = DEFAULT_FORM) -> Outputs:
    """Return a function of inputs and noise that answers the action, the further outputs of `form` and the next state.

    It replaces the rows of the state in which `reset` is true by the initial state, before it calls any function.
    """
    if spec.state:
        return _step_outputs(function, spec, form)

    def answer(observation: Any, noise: Any) -> dict[str, Any]:
        more = {name: output(observation, noise) for name, output in form.outputs.items()}
        return {spec.action.name: function(observation, noise), **more}

    return answer


def started(specs: Sequence[StateSpec], state: Mapping[str, Any], reset: Any) -> dict[str, Any]:
    """Return the state [batch, ...] by name, with the initial one in the rows in which `reset`, bool [batch], is true.

    `state` may hold other arrays too.
    """
    return {
        spec.name: tf.where(
            tf.reshape(reset, (-1, *[1] * len(spec.shape))), tf.constant(spec.initial_rows(1)), state[spec.name]
        )
        for spec in specs
    }


def of_inputs(function: PolicyFunction, spec: PolicySpec) -> InferenceFunction:
    """Return a function of inputs and noise with the results of `function`, such as an action, but no next state."""
    if not spec.state:
        return function

    def answer(inputs: Any, noise: Any) -> Any:
        found = function(*_arguments(inputs, spec), noise)
        return found[0] if isinstance(found, tuple) else found

    return answer


def _step_outputs(function: StepFunction, spec: PolicySpec, form: GraphForm) -> Outputs:
    def answer(inputs: Any, noise: Any) -> dict[str, Any]:
        arguments = _arguments(inputs, spec)
        found = function(*arguments, noise)
        if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], Mapping):
            raise ExportError("function must give two things, the action and a dict of the next state")
        action, next_state = found
        names = [each.name for each in spec.state]
        if set(next_state) != set(names):
            raise ExportError(
                f"function gives a next state of {', '.join(map(str, next_state)) or 'nothing'}, and the spec's state "
                f"is {', '.join(names)}; give each"
            )
        more = {name: output(*arguments, noise) for name, output in form.outputs.items()}
        return {
            spec.action.name: action,
            **more,
            **{each.next_name: tf.identity(next_state[each.name]) for each in spec.state},
        }

    return answer


def _arguments(inputs: Mapping[str, Any], spec: PolicySpec) -> tuple[Any, dict[str, Any], Any]:
    """Split the inputs into observation, state and `reset`; the state is the initial one where that is true."""
    reset = inputs[RESET]
    observation = structured({part.name: inputs[part.name] for part in spec.observation})
    return observation, started(spec.state, inputs, reset), reset
