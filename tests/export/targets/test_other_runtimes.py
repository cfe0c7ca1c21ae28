"""The same ONNX file in runtimes of other people: OpenVINO, and onnxruntime-web's WebAssembly in Node.js."""

import functools
import hashlib
import json
import os
import select
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.support.export import stateful
from tests.support.export.masked import MASKED, masked_policy, visited
from tests.support.export.openvino_process import one_process, openvino_actor, openvino_step
from tests.support.export.stateful import STATEFUL, reference_cases
from tests.support.export.zoo import KINDS, agrees, case, converted, error, onnx_actor
from trpo_tf.export import convert_policy
from trpo_tf.export.graph.fixed_batch import with_fixed_batch
from trpo_tf.export.graph.noise_input import with_noise
from trpo_tf.export.graph.quantize import quantize_dynamic, quantize_static
from trpo_tf.export.parity.compare import compare_sequences
from trpo_tf.serving.bundle.golden import STEPS
from trpo_tf.serving.runtime.action_masks import legal_rows
from trpo_tf.serving.runtime.noise import draw_noise
from trpo_tf.serving.runtime.observations import batch_size
from trpo_tf.serving.verify import agree

WEB = Path(__file__).parent / "web"
CONTINUOUS_AND_DISCRETE = ["gaussian", "categorical", "dict"]
QUANTISED_TOLERANCE = 0.05


def graph(kind, choice):
    return with_noise(onnx.load_from_string(converted(kind)), "noise", choice).SerializeToString()


def stateful_graph(name):
    spec = STATEFUL[name].spec
    return with_noise(onnx.load_from_string(stateful.converted(name)), spec.noise.name, "required").SerializeToString()


@pytest.fixture(scope="module")
def process():
    """A process with OpenVINO."""
    with one_process() as pool:
        yield pool


@pytest.fixture
def openvino(process):
    """Makes actors in OpenVINO of a graph and a spec."""
    return functools.partial(openvino_actor, process)


@pytest.mark.parametrize("kind", KINDS)
def test_openvino_samples_with_required_noise(kind, openvino):
    tested = case(kind)
    actor = openvino(graph(kind, "required"), tested.policy.spec)
    assert agrees(actor, tested)


@pytest.mark.parametrize("name", stateful.KINDS)
def test_openvino_carries_a_state(name, process):
    made, spec = reference_cases(name), STATEFUL[name].spec
    step = openvino_step(process, stateful_graph(name), spec)
    for noisy in (False, True):
        found = compare_sequences(step, made.sequences(exact=True, noise=noisy), spec)
        assert (found.complete, found.compared > 150) == (True, True)


def masked_case(name):
    """A policy's graph, its spec, masked observations with noise, and the actions in ONNX Runtime."""
    policy, observations = masked_policy(name), visited(name)
    content = convert_policy(policy.function, policy.spec)
    noise = draw_noise(policy.spec.noise, batch_size(observations), np.random.default_rng(2))
    required = with_noise(onnx.load_from_string(content), policy.spec.noise.name, "required").SerializeToString()
    return required, policy.spec, observations, noise, onnx_actor(content, policy.spec)(observations, noise)


def are_masked(actions, name, observations, expected):
    """Whether all actions are legal, and those of ONNX Runtime but for what rounding decides."""
    legal = legal_rows(actions, observations, "action_mask", MASKED[name][0])
    return legal.all() and (actions == expected).mean() > 0.99


def test_openvino_chooses_legal_actions(openvino):
    for name in MASKED:
        content, spec, observations, noise, expected = masked_case(name)
        assert are_masked(openvino(content, spec)(observations, noise), name, observations, expected)


@pytest.mark.parametrize("choice", ["optional", "none"])
def test_openvino_is_deterministic_otherwise(choice, openvino):
    tested = case("dict")
    actor = openvino(graph("dict", choice), tested.policy.spec)
    assert agrees(actor, tested, noisy=False)


@pytest.mark.parametrize("kind", CONTINUOUS_AND_DISCRETE)
def test_openvino_runs_quantised_graphs(kind, openvino):
    tested = case(kind)
    model = graph(kind, "required")
    static = quantize_static(model, tested.policy.spec, tested.visited, tested.noise)
    for content in (quantize_dynamic(model, tested.policy.spec), static):
        actor = openvino(content, tested.policy.spec)
        assert error(tested, actor, tested.noise) <= QUANTISED_TOLERANCE


@pytest.fixture(scope="session")
def packages(request):
    """A folder with run.mjs and the packages that its lock file names, kept from one test run to the next."""
    lock = (WEB / "package-lock.json").read_bytes()
    folders = Path(request.config.cache.mkdir("onnxruntime-web"))
    folder = folders / hashlib.sha256(lock).hexdigest()[:16]
    if not folder.exists():
        scratch = Path(tempfile.mkdtemp(dir=folders))
        shutil.copytree(WEB, scratch, dirs_exist_ok=True)
        subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=scratch, check=True)
        try:
            os.rename(scratch, folder)
        except OSError:  # another process of this run was first
            shutil.rmtree(scratch)
    shutil.copy(WEB / "run.mjs", folder)
    return folder


@pytest.fixture(scope="module")
def web(packages, tmp_path_factory):
    """Runs steps of a graph in a process of Node.js that all tests share: the outputs of each step, or the error.

    The page carries the state from step to step.
    """
    model = tmp_path_factory.mktemp("web") / "policy.onnx"
    with subprocess.Popen(
        ["node", "run.mjs"], cwd=packages, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as node:

        def run(content, steps, state=()):
            model.write_bytes(content)
            request = {"model": str(model), "state": list(state), "steps": list(map(encoded, steps))}
            node.stdin.write(f"{json.dumps(request)}\n")
            node.stdin.flush()
            assert select.select([node.stdout], [], [], 120)[0], "no answer in two minutes"
            answer = json.loads(node.stdout.readline())
            return answer if isinstance(answer, str) else list(map(decoded, answer))

        yield run
        node.stdin.close()


def encoded(feeds):
    return {
        name: {"type": array.dtype.name, "dims": array.shape, "data": array.ravel().tolist()}
        for name, array in feeds.items()
    }


def decoded(outputs):
    return {name: np.array(output["data"], output["type"]).reshape(output["dims"]) for name, output in outputs.items()}


def run_web(web, content, feeds):
    """The one output, or the error."""
    answered = web(content, [feeds])
    if isinstance(answered, str):
        return answered
    (output,) = answered[0].values()
    return output


@pytest.mark.parametrize("kind", CONTINUOUS_AND_DISCRETE)
def test_the_web_samples_with_required_noise(kind, web):
    tested = case(kind)
    actions = run_web(web, graph(kind, "required"), tested.feeds)
    untied = tested.reference.untied(tested.visited, tested.noise)
    assert untied.sum() > 60
    expected = onnx_actor(converted(kind), tested.policy.spec)(tested.visited, tested.noise)
    assert agree(actions[untied], expected[untied])


@pytest.mark.parametrize("name", stateful.KINDS)
def test_the_web_carries_a_state(name, web):
    """The page runs all golden sequences as one batch, and carries the state from the first step's on."""
    spec, golden = STATEFUL[name].spec, reference_cases(name).sequences(exact=True, noise=True)
    inputs = golden.observations | {spec.noise.name: golden.noise}
    rows = np.arange(len(golden)).reshape(-1, STEPS)
    steps = [{part: array[now] for part, array in inputs.items()} for now in rows.T]
    answers = iter(web(stateful_graph(name), steps, [each.name for each in spec.state]))
    found = compare_sequences(lambda *_: next(answers), golden, spec)
    assert (found.complete, found.compared > 150) == (True, True)


@pytest.mark.parametrize("name", MASKED)
def test_the_web_chooses_legal_actions(name, web):
    content, spec, observations, noise, expected = masked_case(name)
    actions = run_web(web, content, observations | {spec.noise.name: noise})
    assert are_masked(actions, name, observations, expected)


@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
def test_the_web_is_deterministic_without_noise_and_takes_a_fixed_batch(kind, web):
    tested = case(kind)
    model = with_fixed_batch(onnx.load_from_string(graph(kind, "none")), batch_size(tested.visited))
    actions = run_web(web, model.SerializeToString(), {"obs": tested.visited})
    untied = tested.reference.untied(tested.visited, tested.zero_noise)
    assert agree(actions[untied], tested.reference.act(tested.visited, tested.zero_noise)[untied])


def test_the_web_runs_quantised_graphs(web):
    tested = case("gaussian")
    static = quantize_static(graph("gaussian", "required"), tested.policy.spec, tested.visited, tested.noise)
    actions = run_web(web, static, tested.feeds)
    assert error(tested, lambda observations, noise: actions, tested.noise) <= QUANTISED_TOLERANCE


def test_the_web_refuses_optional_noise(web):
    """Why noise can be made required: once this works, it need not."""
    tested = case("gaussian")
    assert "noise" in run_web(web, graph("gaussian", "optional"), tested.feeds)
    assert isinstance(run_web(web, graph("gaussian", "optional"), {"obs": tested.visited}), np.ndarray)
