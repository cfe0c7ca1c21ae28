"""What a file says about itself comes back as it was said, and changes nothing of what it does."""

import json
import math

import onnx
import pytest

from tests.support.export.zoo import case, converted
from trpo_tf.export import ExportError
from trpo_tf.export.graph.metadata import manifest_metadata, read_metadata, with_metadata
from trpo_tf.export.graph.quantize import quantize_dynamic
from trpo_tf.serving import Manifest
from trpo_tf.serving.bundle.files import FileEntry
from trpo_tf.serving.runtime.onnx_runtime import open_session

VALUES = {"environment": "CartPole-v1", "parity": {"max_difference": 1e-7, "cases": 512}, "seeds": [0, 1], "note": "é"}


@pytest.fixture
def model():
    return onnx.load_from_string(converted("gaussian"))


@pytest.fixture
def manifest():
    spec = case("gaussian").policy.spec
    return Manifest(
        "reach",
        spec.observation,
        spec.action,
        spec.noise,
        files={"policy.onnx": FileEntry(1, "0")},
        provenance={"environment": "Reach-v0"},
        parity={"onnx": {"max_difference": 1e-7}},
    )


def test_values_come_back(model):
    described = onnx.load_from_string(with_metadata(model, VALUES).SerializeToString())
    assert read_metadata(described) == VALUES
    onnx.checker.check_model(described, full_check=True)


def test_any_tool_sees_json_by_key(model):
    session = open_session(with_metadata(model, VALUES).SerializeToString())
    shown = session.get_modelmeta().custom_metadata_map
    assert json.loads(shown["trpo-tf.parity"]) == VALUES["parity"]


def test_nothing_but_the_metadata_changes(model):
    described = with_metadata(model, VALUES)
    assert not model.metadata_props
    assert described.graph == model.graph
    del described.metadata_props[:]
    assert described == model


def test_metadata_said_anew_replaces_the_old_and_leaves_that_of_others(model):
    model.metadata_props.add(key="author", value="not JSON")
    described = with_metadata(with_metadata(model, VALUES), {"note": "new"})
    assert read_metadata(described) == {"note": "new"}
    assert [(prop.key, prop.value) for prop in described.metadata_props if prop.key == "author"] == [
        ("author", "not JSON")
    ]


def test_a_manifest_goes_into_the_file_with_bounds_and_without_files(model, manifest):
    values = read_metadata(with_metadata(model, manifest_metadata(manifest)))
    assert values["format"] == "trpo-tf-bundle"
    assert values["provenance"] == {"environment": "Reach-v0"}
    assert values["parity"] == {"onnx": {"max_difference": 1e-7}}
    assert (values["action"]["low"], values["action"]["high"]) == ([-2.0, 0.0], [6.0, 1.0])
    assert values["observation"][0]["low"] is None
    assert "files" not in values
    again = Manifest.from_json(json.dumps({**values, "files": json.loads(manifest.to_json())["files"]}))
    assert again == manifest


def test_quantisation_keeps_metadata_and_adds_none(model):
    described = with_metadata(model, VALUES)
    quantized = onnx.load_from_string(quantize_dynamic(described.SerializeToString(), case("gaussian").policy.spec))
    assert quantized.metadata_props == described.metadata_props


@pytest.mark.parametrize("value", [math.nan, {1, 2}, object()])
def test_what_is_not_json_is_refused(model, value):
    with pytest.raises(ExportError, match="metadata 'figure' isn't JSON"):
        with_metadata(model, {"figure": value})


def test_metadata_of_ours_that_is_not_json_is_refused(model):
    model.metadata_props.add(key="trpo-tf.note", value="{")
    with pytest.raises(ExportError, match=r"'trpo-tf\.note' isn't JSON"):
        read_metadata(model)
