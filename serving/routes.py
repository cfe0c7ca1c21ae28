"""What the server answers: each path with its method, and a function from a request's headers and body to a response.

It knows nothing of connections: `serving.http` reads requests and writes what is answered here.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

import httptools
import orjson

from serving import binary
from serving.admission import admission
from serving.codec import InferRequest, RequestError, decode_request, encode_response, model_metadata, server_metadata
from serving.limits import ENCODINGS, TooLargeError, check_depth, decompress
from serving.manifest import Manifest
from serving.observations import Array
from serving.openapi import describe
from serving.options import ServeOptions
from serving.policy import Policy
from serving.predict import decode_instances, encode_predictions, model_status

Body = bytes | bytearray
Headers = Mapping[bytes, bytes]
Answers = dict[str, Array]

RETRY_SECONDS = 1
"""When to come back, in a 503's Retry-After."""


class Response(NamedTuple):
    """What is answered. `headers` are whole lines, each with its line end."""

    status: int
    body: bytes
    headers: bytes = b""
    content_type: bytes = b"application/json"


class HttpError(Exception):
    """A request that is answered with {"error": message}."""

    def __init__(self, status: int, message: str, headers: bytes = b"") -> None:
        super().__init__(message)
        self.response = Response(status, orjson.dumps({"error": message}), headers)


class Exchange(NamedTuple):
    """The parts of an answer by a policy: a request from headers and body, and a response from what was answered.

    `decode` raises `RequestError` and `TooLargeError`.
    """

    policy: Policy
    decode: Callable[[Headers, Body], InferRequest]
    encode: Callable[[InferRequest, Answers], Response]


class Route(NamedTuple):
    """What one path answers. `is_open`: also without a key. `exchange`: the parts of `answer`, of a policy."""

    methods: tuple[bytes, ...]
    answer: Callable[[Headers, Body], Response]
    is_open: bool = False
    exchange: Exchange | None = None


Routes = Mapping[str, Route]


def make_routes(policy: Policy, options: ServeOptions) -> dict[str, Route]:
    """Every path of the server, with the model's name and version spelled out in it."""
    manifest, version = policy.manifest, model_version(policy.manifest)
    routes = {
        "/v2": _constant(server_metadata()),
        "/v2/health/live": _constant({"live": True})._replace(is_open=True),
        "/v2/health/ready": _constant({"ready": True})._replace(is_open=True),
    }
    infer, predict = _inference(policy, version, options), _prediction(policy, options)
    for suffix in ("", f"/versions/{version}"):
        model = f"/v2/models/{manifest.name}{suffix}"
        routes[model] = _constant(model_metadata(manifest, version))
        routes[f"{model}/ready"] = _constant({"name": manifest.name, "ready": True})
        routes[f"{model}/infer"] = infer
        model = f"/v1/models/{manifest.name}{suffix}"
        routes[model] = _constant(model_status(version))
        routes[f"{model}:predict"] = predict
    routes["/openapi.json"] = _constant(describe(manifest, version, bool(options.keys)))
    return routes


def find_route(routes: Routes, target: bytes, method: bytes) -> Route:
    """The route of a request's target. Raises `HttpError`: 404, or 405 with the methods that there are."""
    path = _path(target)
    route = routes.get(path) or routes.get(path.removesuffix("/"))
    if route is None:
        raise HttpError(404, _not_found(path, routes))
    if method not in route.methods:
        names = b", ".join(route.methods)
        raise HttpError(405, f"{path} takes {names.decode()}", b"allow: %b\r\n" % names)
    return route


def model_version(manifest: Manifest) -> str:
    """The version that the model is served as: its provenance's `model_version`, or "1"."""
    return str(manifest.provenance.get("model_version", 1))


def _inference(policy: Policy, version: str, options: ServeOptions) -> Route:
    """The protocol's `infer`."""
    manifest, admit = policy.manifest, admission(policy, options)

    def decode(headers: Headers, body: Body) -> InferRequest:
        body = _decoded(headers, body, options)
        json_length = headers.get(binary.HEADER)
        with_json = body if json_length is None else body[: _size(json_length)]
        check_depth(with_json)
        if json_length is None:
            request = decode_request(body, manifest, max_batch=options.max_batch)
        else:
            request = binary.decode_binary(body, json_length, manifest, max_batch=options.max_batch)
        return request if admit is None else admit(request)

    def encode(request: InferRequest, answers: Answers) -> Response:
        if not any(request.outputs.values()):
            return Response(200, encode_response(answers, manifest, version, request.request_id))
        content, length = binary.encode_binary(answers, request.outputs, manifest, version, request.request_id)
        return Response(200, content, b"%b: %d\r\n" % (binary.HEADER, length), b"application/octet-stream")

    return _acting(Exchange(policy, decode, encode), options)


def _prediction(policy: Policy, options: ServeOptions) -> Route:
    """TensorFlow Serving's `predict`."""
    manifest, admit = policy.manifest, admission(policy, options)

    def decode(headers: Headers, body: Body) -> InferRequest:
        body = _decoded(headers, body, options)
        check_depth(body)
        request = decode_instances(body, manifest, max_batch=options.max_batch)
        return request if admit is None else admit(request)

    def encode(_request: InferRequest, answers: Answers) -> Response:
        return Response(200, encode_predictions(answers[manifest.action.name]))

    return _acting(Exchange(policy, decode, encode), options)


def _acting(exchange: Exchange, options: ServeOptions) -> Route:
    policy, decode, encode = exchange

    def answer(headers: Headers, body: Body) -> Response:
        try:
            request = decode(headers, body)
            return encode(request, policy.infer(request.observations, request.noise, [*request.outputs]))
        except RequestError as error:
            raise HttpError(400, str(error)) from None
        except FloatingPointError as error:
            raise HttpError(500, str(error)) from None
        except TooLargeError:
            raise too_large(options.max_body) from None

    return Route((b"POST",), answer, exchange=exchange)


def too_large(limit: int) -> HttpError:
    """The answer to a body that is too large, as it came or decompressed."""
    return HttpError(413, f"the body is larger than {limit} bytes; send fewer observations at a time")


def _decoded(headers: Headers, body: Body, options: ServeOptions) -> Body:
    """The body without its content coding."""
    encoding = headers.get(b"content-encoding", b"identity").lower()
    if encoding == b"identity":
        return body
    if encoding not in ENCODINGS:
        raise HttpError(415, "the content coding is not supported", b"accept-encoding: gzip, deflate\r\n")
    return decompress(body, encoding, options.max_body)


def _size(text: bytes) -> int:
    return int(text) if text.isdigit() and len(text) < 20 else 0


def _constant(document: dict[str, Any]) -> Route:
    response = Response(200, orjson.dumps(document))
    return Route((b"GET", b"HEAD"), lambda _headers, _body: response)


def _path(target: bytes) -> str:
    """The decoded path of a request target, which may be a whole URL."""
    if target.startswith(b"/") and target.isascii() and not (b"%" in target or b"?" in target or b"#" in target):
        return target.decode()
    try:
        path = httptools.parse_url(target).path or b"/"
    except httptools.HttpParserInvalidURLError:
        raise HttpError(400, "the request's target is not a URL or a path") from None
    return unquote(path, errors="replace")


def _not_found(path: str, routes: Routes) -> str:
    parts = path.split("/")
    if parts[1:3] in (["v1", "models"], ["v2", "models"]) and len(parts) > 3:
        name = parts[3].partition(":")[0] if parts[1] == "v1" else parts[3]
        if f"/{parts[1]}/models/{name}" not in routes:
            return f"there is no model {name!r}"
    return f"there is nothing at {path}"
