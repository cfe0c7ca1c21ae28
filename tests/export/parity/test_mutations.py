"""The proof turned round: an exporter that is wrong in any of many ways writes nothing, and the page says who told."""

import re
from functools import cache

import onnx
import pytest

from tests.support.export.mutated_policies import POLICIES
from tests.support.export.mutations import MUTATIONS
from tests.support.paths import ROOT
from trpo_tf.export import ExportError, ParityError
from trpo_tf.export.bundle.graphs import PolicyGraphs, export_inputs, further_outputs, policy_graphs
from trpo_tf.export.bundle.make_targets import make_targets
from trpo_tf.export.parity.proof import manifest_parity
from trpo_tf.export.parity.reference.evidence import make_reference_cases
from trpo_tf.export.policy.outputs import all_outputs
from trpo_tf.export.targets.table import TARGETS
from trpo_tf.serving import GraphSpec, Manifest

PAGE = ROOT / "docs" / "explanation" / "proof.md"
CHECKS = {
    "type and shape": r"answers \w+ (actions|output '\w+') of shape",
    "finite numbers": "is not finite",
    "declared bounds": "outside the declared bounds",
    "equal answers": "differs from the trained policy by",
    "further outputs": "differs from the policy in output",
    "8-bit error": "loses the policy in 8 bits",
}


@cache
def prepared(name):
    """A policy's manifest, its graphs and what targets are held against: made once for all mutations."""
    policy = POLICIES[name]()
    spec, outputs = policy.spec, all_outputs(policy.function, policy.spec, policy.form)
    further = further_outputs(outputs, spec)
    manifest = Manifest(name, spec.observation, spec.action, spec.noise, GraphSpec(outputs=further))
    graphs = policy_graphs(policy.function, outputs, spec, policy.form)
    content = graphs.outputs.SerializeToString()
    reference_cases = make_reference_cases(policy.function, outputs, manifest, policy.evidence(), content)
    return policy, outputs, manifest, graphs, reference_cases


def export(name, target, folder, mutate=lambda graph: None):
    """Write and compare one target as `write_bundle` does, from graphs that are changed before."""
    policy, outputs, manifest, graphs, reference_cases = prepared(name)
    changed = {
        id(model): onnx.ModelProto.FromString(model.SerializeToString()) for model in (graphs.plain, graphs.outputs)
    }
    for model in changed.values():
        mutate(model.graph)
    graphs = PolicyGraphs(*(changed[id(model)] for model in (graphs.plain, graphs.outputs)))
    inputs = export_inputs(policy.function, outputs, manifest, policy.form, graphs, reference_cases)
    _, proofs = make_targets(folder, manifest, {target: TARGETS[target]}, inputs, reference_cases, (), lambda _: None)
    return manifest_parity(proofs, reference_cases, accept_loss=False)


@pytest.mark.parametrize(
    ("name", "target"), sorted({(mutation.policy, mutation.target) for mutation in MUTATIONS.values()})
)
def test_what_is_right_is_written(name, target, tmp_path):
    figures = export(name, target, tmp_path)[target]
    assert figures["decided"] > 0.9
    assert figures["cases_equal"] == figures["cases"] or not figures["exact"]


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_wrong_is_refused(name, tmp_path, monkeypatch):
    mutation = MUTATIONS[name]
    prepared(mutation.policy)
    mutation.patch(monkeypatch)
    with pytest.raises((ExportError, ParityError)) as refused:
        export(mutation.policy, mutation.target, tmp_path, mutation.graph)
    found = [check for check, words in CHECKS.items() if re.search(words, str(refused.value))]
    assert len(found) == 1, str(refused.value)
    row = f"| {name} | `{mutation.target}` | {found[0]} |"
    assert row in PAGE.read_text().splitlines(), row


def test_the_page_tells_of_these_mutations_and_no_others():
    _, table = PAGE.read_text().split("| mutation | target | caught by |\n|---|---|---|\n")
    assert len(MUTATIONS) >= 30
    assert [line.split("|")[1].strip() for line in table.splitlines()] == list(MUTATIONS)
