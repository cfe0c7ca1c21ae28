"""The OpenAPI document that the server publishes of itself, at /openapi.json."""

from typing import Any
from urllib.parse import quote

from serving import __version__
from serving.catalog import Catalog, Model
from serving.codec import tensor_metadata
from serving.json_body import Document
from serving.limits import MAX_DEPTH
from serving.manifest import ArraySpec, Manifest, NoiseSpec
from serving.options import ServeOptions

_KINDS = {"b": "boolean", "i": "integer", "u": "integer", "f": "number"}

# Of a POST: what goes wrong, in the order of docs/serving.md.
_ERRORS = {
    400: "The request is wrong; the message says how",
    401: "The key is missing or unknown",
    404: "There is no such model or version",
    405: "Another method is asked for",
    408: "The request did not arrive in time",
    413: "The body is too large",
    415: "The content coding is not supported",
    431: "The headers are too large",
    500: "The action, or a further output, is not finite",
    503: "The server is busy; Retry-After says when to come back",
}


def describe(catalog: Catalog, options: ServeOptions) -> Document:
    """Every route of the server with its request and answers, for every version that is loaded."""
    paths: dict[str, Any] = {
        "/v2": _get("Server metadata"),
        "/v2/health/live": _get("Whether the server runs"),
        "/v2/health/ready": _get("Whether the server can act"),
    }
    if options.keys:
        for path in ("/v2/health/live", "/v2/health/ready"):
            paths[path]["get"]["security"] = []
    paths["/metrics"] = _get("Metrics, as Prometheus reads them")
    paths["/metrics"]["get"]["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    for release in catalog.releases.values():
        *_, newest = release.versions.values()
        paths.update(_model_paths(newest, ""))
        for model in release.versions.values():
            paths.update(_model_paths(model, f"/versions/{quote(model.version, safe='')}"))
    if options.repository_api:
        paths.update(_repository_paths())
    document: Document = {
        "openapi": "3.1.0",
        "info": {"title": ", ".join(catalog.releases) or "no model", "version": __version__},
        "paths": paths,
        "components": {"schemas": {"Error": _object({"error": {"type": "string"}}, ["error"])}},
    }
    if options.keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _model_paths(model: Model, suffix: str) -> dict[str, Any]:
    name, manifest = quote(model.name, safe=""), model.policy.manifest
    v2, v1 = f"/v2/models/{name}{suffix}", f"/v1/models/{name}{suffix}"
    return {
        v2: _get("Model metadata"),
        f"{v2}/ready": _get("Whether the model can act"),
        f"{v2}/infer": _post("Actions for observations", infer_request(manifest), infer_response(manifest)),
        v1: _get("Model status, as TensorFlow Serving has it"),
        f"{v1}:predict": _post(
            "Predictions, as TensorFlow Serving has them", _instances(manifest), _predictions(manifest)
        ),
    }


def _repository_paths() -> dict[str, Any]:
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    entry = _object({key: {"type": "string"} for key in ("name", "version", "state", "reason")}, ["name", "state"])
    only_ready = _object({"ready": {"type": "boolean"}})
    done, told = _object({}), _object({"parameters": {"type": "object", "maxProperties": 0}})
    return {
        "/v2/repository/index": _post("Versions in the repository", only_ready, {"type": "array", "items": entry}),
        "/v2/repository/models/{name}/load": _post("Load a model", told, done) | {"parameters": [name]},
        "/v2/repository/models/{name}/unload": _post("Unload a model", told, done) | {"parameters": [name]},
    }


def infer_request(manifest: Manifest) -> Document:
    """The schema of an inference request. That data fits its shape is beyond what a schema can say."""
    inputs = [_tensor(spec, manifest) for spec in manifest.observation]
    if manifest.graph.noise != "none":
        inputs.append(_tensor(manifest.noise, manifest))
    names = [spec.name for spec in manifest.outputs]
    parameters = {"deterministic": {"type": "boolean"}, "seed": {"type": "integer", "minimum": 0}, **_BINARY_OUTPUT}
    return _object(
        {
            "id": {"type": "string"},
            "parameters": _object(parameters),
            "inputs": {"type": "array", "minItems": len(manifest.observation), "items": {"anyOf": inputs}},
            "outputs": {"type": "array", "items": _object({"name": {"enum": names}}, ["name"])},
        },
        ["inputs"],
    )


def infer_response(manifest: Manifest) -> Document:
    """The schema of its answer."""
    output = {"anyOf": [_tensor(spec, manifest) for spec in manifest.outputs]}
    return _object(
        {
            "model_name": {"const": manifest.name},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": output},
        },
        ["model_name", "model_version", "outputs"],
    )


_BINARY_OUTPUT = {"binary_data_output": {"type": "boolean"}}


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
    """One element of data: a number, or a row of them."""
    element = {"type": _KINDS[spec.dtype[0]]}
    return {"anyOf": [element, {"type": "array"}]} if spec.shape else element


def _instances(manifest: Manifest) -> Document:
    rows = {spec.name: _row(spec) for spec in manifest.observation}
    named = _object(rows, list(rows)) | {"additionalProperties": False}
    instance = named if len(rows) > 1 else {"anyOf": [named, *rows.values()]}
    return _object(
        {
            "signature_name": {"const": "serving_default"},
            "instances": {"type": "array", "minItems": 1, "items": instance},
        },
        ["instances"],
    )


def _predictions(manifest: Manifest) -> Document:
    return _object({"predictions": {"type": "array", "items": _row(manifest.action)}}, ["predictions"])


def _row(spec: ArraySpec) -> Document:
    """One observation or action, nested as its shape says."""
    schema: Document = {"type": _KINDS[spec.dtype[0]]}
    for size in reversed(spec.shape):
        schema = {"type": "array", "items": schema, "minItems": size, "maxItems": size}
    return schema


def _object(properties: Document, required: list[str] | None = None) -> Document:
    schema: Document = {"type": "object", "properties": properties}
    return schema | {"required": required} if required else schema


def _get(summary: str) -> Document:
    return {"get": {"summary": summary, "responses": _responses({"type": "object"}, 400, 401, 404, 405, 408, 431, 503)}}


def _post(summary: str, request: Document, answer: Document) -> Document:
    body = {"required": True, "content": {"application/json": {"schema": request}}}
    text = f"JSON is nested at most {MAX_DEPTH} deep, and has neither NaN nor infinities"
    responses = _responses(answer, *_ERRORS)
    responses["200"]["content"]["application/octet-stream"] = {}
    return {"post": {"summary": summary, "description": text, "requestBody": body, "responses": responses}}


def _responses(answer: Document, *errors: int) -> Document:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    good = {"description": "The answer", "content": {"application/json": {"schema": answer}}}
    return {"200": good} | {str(status): {"description": _ERRORS[status], "content": error} for status in errors}
