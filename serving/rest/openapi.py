"""The OpenAPI document of the server's routes, served at /openapi.json."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from trpo_tf.serving import __version__
from trpo_tf.serving.bundle.manifest import Manifest
from trpo_tf.serving.bundle.specs import ArraySpec, NoiseSpec
from trpo_tf.serving.codecs.parameters import MOST_ID_TEXT
from trpo_tf.serving.codecs.parsing.body_limits import MAX_DEPTH
from trpo_tf.serving.codecs.parsing.json_body import Document
from trpo_tf.serving.codecs.v2_json import tensor_metadata
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.repository.catalog import Catalog, Model
from trpo_tf.serving.rest.endpoints import PROTOCOLS, Protocol, served_protocols

_KINDS = {"b": "boolean", "i": "integer", "u": "integer", "f": "number"}

_ERRORS = {
    "4XX": (
        "The request is wrong; the message says how. 400; 401: the key is missing or unknown; "
        "403: a web page may not ask; "
        "404: there is no such model or version; 405: another method; 408: it did not arrive in time; "
        "409: there is no sequence of this id; "
        "413: the body is too large; 415: another content coding; 431: the headers are too large"
    ),
    "5XX": (
        "500: the action, or a further output, is not finite; 501: another transfer coding; "
        "503: not ready, or busy, and then Retry-After says when to come back"
    ),
}


class Schemas:
    """Shared schemas of a document: models with the same inputs and outputs use the same ones."""

    def __init__(self) -> None:
        self.components: Document = {"schemas": {"Error": _object({"error": {"type": "string"}}, ["error"])}}
        self.components["responses"] = {status: _response(text, _ERROR) for status, text in _ERRORS.items()}
        self.components["responses"]["Object"] = _response("The answer", {"type": "object"})
        self._operations: dict[Any, tuple[Document, Document]] = {}

    def operations(self, manifest: Manifest) -> tuple[Document, Document]:
        """Return the operations `infer` and `predict` of a policy."""
        signature = manifest.step_inputs, manifest.outputs, manifest.noise, manifest.graph
        if signature not in self._operations:
            number = str(len(self._operations) + 1)
            infer = self._add(f"Infer{number}", infer_request(manifest), infer_response(manifest), is_binary=True)
            predict = self._add(f"Predict{number}", _instances(manifest), _predictions(manifest))
            self._operations[signature] = (
                _post("Actions for observations", **infer),
                _post("Predictions, as TensorFlow Serving has them", **predict),
            )
        return self._operations[signature]

    def _add(self, name: str, request: Document, answer: Document, *, is_binary: bool = False) -> Document:
        self.components["schemas"] |= {f"{name}Request": request, f"{name}Response": answer}
        response = _response("The answer", _ref("schemas", f"{name}Response"))
        if is_binary:
            response["content"]["application/octet-stream"] = {}
        self.components["responses"][name] = response
        return {"request": _ref("schemas", f"{name}Request"), "response": _ref("responses", name)}


def describe(catalog: Catalog, options: ServeOptions) -> Document:
    """Describe every route with its request and responses, for every loaded version."""
    schemas = Schemas()
    paths: dict[str, Any] = {
        "/v2": _get("Server metadata"),
        "/v2/models": _get("Models, with their versions and state"),
        "/v2/health/live": _get("Whether the server runs"),
        "/v2/health/ready": _get("Whether the server can act"),
    }
    if options.keys:
        for path in ("/v2/health/live", "/v2/health/ready"):
            paths[path]["get"]["security"] = []
    paths["/metrics"] = _get("Metrics, as Prometheus reads them")
    text = {"description": "The answer", "content": {"text/plain": {"schema": {"type": "string"}}}}
    paths["/metrics"]["get"]["responses"]["200"] = text
    added = [protocol for protocol in served_protocols(options) if protocol not in PROTOCOLS]
    for release in catalog.releases.values():
        *_, newest = release.versions.values()
        named = [(model, f"/versions/{quote(model.version, safe='')}") for model in release.versions.values()]
        for model, suffix in [(newest, ""), *named]:
            paths.update(_model_paths(model, suffix, schemas))
            paths.update(_added_paths(model, suffix, added))
    if options.repository_api:
        paths.update(_repository_paths())
    schemas.components["pathItems"] = _MODEL_ITEMS
    document: Document = {
        "openapi": "3.1.0",
        "info": {"title": "trpo-tf serving", "version": __version__},
        "paths": paths,
        "components": schemas.components,
    }
    if options.keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _model_paths(model: Model, suffix: str, schemas: Schemas) -> dict[str, Any]:
    name = quote(model.name, safe="")
    v2, v1 = f"/v2/models/{name}{suffix}", f"/v1/models/{name}{suffix}"
    infer, predict = schemas.operations(model.policy.manifest)
    return {v2: _METADATA, f"{v2}/ready": _READY, f"{v2}/infer": infer, v1: _STATUS, f"{v1}:predict": predict}


def _added_paths(model: Model, suffix: str, added: Sequence[Protocol]) -> dict[str, Any]:
    """Return the paths of a model in protocols of other packages, whose bodies only those know."""
    name = quote(model.name, safe="")
    return {f"{protocol.prefix}/{name}{suffix}{protocol.suffix}": _ADDED for protocol in added}


def _repository_paths() -> dict[str, Any]:
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    entry = _object({key: {"type": "string"} for key in ("name", "version", "state", "reason")}, ["name", "state"])
    only_ready, done = _object({"ready": {"type": "boolean"}}), _response("Done", _object({}))
    told, found = _object({"parameters": {"type": "object", "maxProperties": 0}}), {"type": "array", "items": entry}
    return {
        "/v2/repository/index": _post("Versions in the repository", only_ready, _response("The versions", found)),
        "/v2/repository/models/{name}/load": _post("Load a model", told, done) | {"parameters": [name]},
        "/v2/repository/models/{name}/unload": _post("Unload a model", told, done) | {"parameters": [name]},
    }


def infer_request(manifest: Manifest) -> Document:
    """Return the schema of an inference request. A schema can't express that data fits its shape."""
    inputs = [_tensor(spec, manifest) for spec in manifest.inputs]
    names = [spec.name for spec in manifest.outputs]
    parameters = {"deterministic": {"type": "boolean"}, "seed": {"type": "integer", "minimum": 0}, **_BINARY_OUTPUT}
    if manifest.state:
        parameters |= _SEQUENCE
    return _object(
        {
            "id": {"type": "string"},
            "parameters": _object(parameters),
            "inputs": {
                "type": "array",
                "minItems": len(manifest.observation),
                "maxItems": len(inputs),
                "items": {"anyOf": inputs},
                "allOf": [_holding(spec.name) for spec in manifest.observation],
            },
            "outputs": {"type": "array", "items": _object({"name": {"enum": names}}, ["name"])},
        },
        ["inputs"],
    ) | {"description": f"JSON is nested at most {MAX_DEPTH} deep, and has neither NaN nor infinities"}


def _holding(name: str) -> Document:
    """Return the schema of an array with exactly one object of this name."""
    return {"contains": _object({"name": {"const": name}}, ["name"]), "maxContains": 1}


def infer_response(manifest: Manifest) -> Document:
    """Return the schema of an inference response."""
    output = {"anyOf": [_tensor(spec, manifest) for spec in manifest.outputs]}
    return _object(
        {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": output},
        },
        ["model_name", "model_version", "outputs"],
    )


_BINARY_OUTPUT = {"binary_data_output": {"type": "boolean"}}

_SEQUENCE = {
    "sequence_id": {
        "anyOf": [{"type": "integer"}, {"type": "string", "maxLength": MOST_ID_TEXT}],
        "description": "the server keeps the state of this sequence; 0 and an empty text are none",
    },
    "sequence_start": {"type": "boolean"},
    "sequence_end": {"type": "boolean"},
}


def _tensor(spec: ArraySpec | NoiseSpec, manifest: Manifest) -> Document:
    described = tensor_metadata(spec, manifest.graph.batch or -1)
    sizes = [{"type": "integer", "minimum": 1} if size == -1 else {"const": size} for size in described["shape"]]
    return _object(
        {
            "name": {"const": spec.name},
            "datatype": {"const": described["datatype"]},
            "shape": {"type": "array", "prefixItems": sizes, "minItems": len(sizes), "maxItems": len(sizes)},
            "data": {"type": "array", "minItems": 1, "items": _nested(spec)},
        },
        ["name", "datatype", "shape", "data"],
    )


def _nested(spec: ArraySpec | NoiseSpec) -> Document:
    """Return the schema of one element of data: a number, or a row of them."""
    element = {"type": _KINDS[spec.dtype[0]]}
    return {"anyOf": [element, {"type": "array"}]} if spec.shape else element


def _instances(manifest: Manifest) -> Document:
    rows = {spec.name: _row(spec) for spec in manifest.observation}
    named = _object(rows, list(rows)) | {"additionalProperties": False}
    instance = named if len(rows) > 1 else {"anyOf": [named, *rows.values()]}
    properties = {
        "signature_name": {"enum": ["serving_default", None]},
        "instances": {"type": "array", "minItems": 1, "items": instance},
    }
    if manifest.state:
        return _object({**properties, "parameters": _object(_SEQUENCE, ["sequence_id"])}, ["instances", "parameters"])
    return _object(properties, ["instances"])


def _predictions(manifest: Manifest) -> Document:
    return _object({"predictions": {"type": "array", "items": _row(manifest.action)}}, ["predictions"])


def _row(spec: ArraySpec) -> Document:
    """Return the schema of one observation or action, nested by its shape."""
    schema: Document = {"type": _KINDS[spec.dtype[0]]}
    for size in reversed(spec.shape):
        schema = {"type": "array", "items": schema, "minItems": size, "maxItems": size}
    return schema


def _object(properties: Document, required: list[str] | None = None) -> Document:
    schema: Document = {"type": "object", "properties": properties}
    return schema | {"required": required} if required else schema


def _get(summary: str) -> Document:
    return {"get": {"summary": summary, "responses": _responses(_ref("responses", "Object"))}}


def _post(summary: str, request: Document, response: Document) -> Document:
    body = {"required": True, "content": {"application/json": {"schema": request}}}
    return {"post": {"summary": summary, "requestBody": body, "responses": _responses(response)}}


def _responses(good: Document) -> Document:
    return {"200": good} | {status: _ref("responses", status) for status in _ERRORS}


def _response(text: str, schema: Document) -> Document:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _ref(kind: str, name: str) -> Document:
    return {"$ref": f"#/components/{kind}/{name}"}


_ERROR = _ref("schemas", "Error")

_MODEL_ITEMS = {
    "Metadata": _get("Model metadata"),
    "Ready": _get("Whether the model can act"),
    "Status": _get("Model status, as TensorFlow Serving and KServe have it"),
}
_ANYTHING: Document = {"content": {"*/*": {}}}
_ADDED = {
    "post": {
        "summary": "Actions, in a protocol that another package adds",
        "requestBody": {"required": True, **_ANYTHING},
        "responses": _responses({"description": "The answer", **_ANYTHING}),
    }
}
_METADATA, _READY, _STATUS = (_ref("pathItems", name) for name in _MODEL_ITEMS)
