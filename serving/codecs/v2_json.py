"""Codec of the JSON requests and responses of the Open Inference Protocol v2.

The protocol: https://github.com/kserve/open-inference-protocol. `serving.codecs.v2_binary` has its binary tensors, and
`serving.codecs.request_validation` the checks of requests.
"""

import sys
from collections.abc import Mapping

import numpy as np
import orjson

from trpo_tf.serving import __version__
from trpo_tf.serving.bundle.manifest import Manifest
from trpo_tf.serving.bundle.specs import RESET, NoiseSpec
from trpo_tf.serving.codecs.datatypes import DATATYPES
from trpo_tf.serving.codecs.parsing.json_body import Document, parse_object
from trpo_tf.serving.codecs.request_validation import InferRequest, Spec, validate_request
from trpo_tf.serving.errors import RequestError as RequestError
from trpo_tf.serving.runtime.observations import Array

_DATATYPE_OF = {np.dtype(name): datatype for name, datatype in DATATYPES.items()}


def decode_request(body: bytes | bytearray, manifest: Manifest, *, max_batch: int = sys.maxsize) -> InferRequest:
    """Parse and check the JSON body of an inference request. Raises `RequestError`."""
    return validate_request(parse_object(body), manifest, max_batch=max_batch)


def encode_response(answers: Mapping[str, Array], manifest: Manifest, version: str, request_id: str | None) -> bytes:
    """Return the JSON response; `answers` are the outputs [batch, ...] by name, which must be finite.

    Their data is flat, in row-major order.
    """
    outputs = [{**output_document(name, values), "data": values.ravel()} for name, values in answers.items()]
    document = response_document(outputs, manifest, version, request_id)
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def response_document(outputs: list[Document], manifest: Manifest, version: str, request_id: str | None) -> Document:
    """Return a response document with these outputs."""
    named = {} if request_id is None else {"id": request_id}
    return {"model_name": manifest.name, "model_version": version, **named, "outputs": outputs}


def output_document(name: str, values: Array) -> Document:
    """Return a document with the name, datatype and shape of an output."""
    return {"name": name, "datatype": _DATATYPE_OF[values.dtype], "shape": values.shape}


def server_metadata(*, has_repository: bool, keeps_sequences: bool) -> Document:
    """Return the protocol's server metadata.

    `has_repository` says whether clients may load and unload models, `keeps_sequences` whether the server keeps the
    state of sequences.
    """
    optional = {"sequence": keeps_sequences, "model_repository": has_repository}
    extensions = ["binary_tensor_data", *(name for name, is_served in optional.items() if is_served)]
    return {"name": "trpo-tf", "version": __version__, "extensions": extensions}


def model_metadata(manifest: Manifest, *versions: str) -> Document:
    """Return the protocol's model metadata. Batch size -1 means any; noise, state and `reset` are optional."""
    batch = manifest.graph.batch or -1
    return {
        "name": manifest.name,
        "versions": list(versions),
        "platform": "onnx_onnxv1",
        "inputs": [_input_metadata(spec, batch, manifest) for spec in manifest.inputs],
        "outputs": [tensor_metadata(spec, batch) for spec in manifest.outputs],
    }


def _input_metadata(spec: Spec, batch: int, manifest: Manifest) -> Document:
    """Return the metadata of an input; a state names the output that gives its next value."""
    document = tensor_metadata(spec, batch)
    following = {state.name: {"next": state.next_name} for state in manifest.state} | {RESET: {}}
    if manifest.state and spec.name in following:
        document["parameters"] = {"optional": True, **following[spec.name]}
    return document


def tensor_metadata(spec: Spec, batch: int) -> Document:
    """Return the protocol's metadata of a tensor: name, datatype and shape."""
    document: Document = {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": [batch, *spec.shape]}
    if isinstance(spec, NoiseSpec):
        document["parameters"] = {"optional": True, "law": spec.law}
    return document
