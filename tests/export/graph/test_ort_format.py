"""The format of ONNX Runtime's minimal builds: it acts the same, and what it needs is written down."""

import onnx
import pytest
from onnxruntime.tools.reduced_build_config_parser import parse_config

from tests.support.export.zoo import KINDS, agrees, case, converted, onnx_actor
from trpo_tf.export import ExportError
from trpo_tf.export.graph.metadata import with_metadata
from trpo_tf.export.ort.convert import to_ort
from trpo_tf.serving import BundleError
from trpo_tf.serving.bundle.onnx_check import check_model
from trpo_tf.serving.runtime.onnx_runtime import open_session


@pytest.mark.parametrize("kind", KINDS)
def test_it_acts_as_tensorflow(kind):
    tested = case(kind)
    content, _ = to_ort(converted(kind))
    actor = onnx_actor(content, tested.policy.spec)
    assert agrees(actor, tested)


OPERATORS = {
    "ai.onnx": {
        13: {"Cast", "Concat", "Exp", "Expand", "Gemm", "Max", "Min"},
        14: {"Add", "Mul", "Sub"},
        15: {"Shape"},
    },
    "com.microsoft": {1: {"FusedGemm"}},
}
"""What ONNX Runtime makes of a Gaussian policy: a layer and its activation become one."""


def test_the_configuration_names_what_the_file_uses_as_the_build_reads_it(tmp_path):
    _, operators = to_ort(converted("gaussian"))
    (tmp_path / "operators.config").write_text(operators)
    read, _ = parse_config(str(tmp_path / "operators.config"))
    assert {domain: {opset: set(names) for opset, names in opsets.items()} for domain, opsets in read.items()} == (
        OPERATORS
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_graph_makes_the_same_bytes(kind):
    assert len({to_ort(converted(kind)) for _ in range(5)}) == 1


def test_metadata_goes_along():
    model = with_metadata(onnx.load_from_string(converted("gaussian")), {"environment": "Reach-v0"})
    session = open_session(to_ort(model.SerializeToString())[0])
    assert session.get_modelmeta().custom_metadata_map == {"trpo-tf.environment": '"Reach-v0"'}


def test_the_server_does_not_take_it():
    with pytest.raises(BundleError, match="ONNX Runtime's own format"):
        check_model(to_ort(converted("gaussian"))[0])


def test_what_is_no_graph_is_refused_in_one_line():
    with pytest.raises(ExportError, match=r"^ONNX Runtime can't convert the graph to its own format: [^\n]+$"):
        to_ort(b"not a graph")
