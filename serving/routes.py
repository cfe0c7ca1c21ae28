"""What the server answers: each path with its method, and a function from a request's headers and body to a response.

It knows nothing of connections: `serving.http` reads requests and writes what is answered here.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import httptools
import orjson

from serving import __version__, binary
from serving.bounds import bounds_check
from serving.catalog import Catalog, Release
from serving.codec import InferRequest, RequestError, decode_request, encode_response, model_metadata
from serving.console.pages import Page, console_pages
from serving.limits import ENCODINGS, TooLargeError, check_depth, decompress
from serving.observations import Array
from serving.openapi import describe
from serving.options import ServeOptions
from serving.policy import Policy
from serving.predict import decode_instances, encode_predictions, model_status

Body = bytes | bytearray
Headers = Mapping[bytes, bytes]

_REPOSITORY = "/v2/repository/models/"

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


Answer = Callable[..., "Response | asyncio.Future[Response]"]
"""A function of a request's headers and body; of what takes longer, a future, which is its connection's last answer."""


class Route(NamedTuple):
    """What one path answers. `is_open`: also without a key."""

    methods: tuple[bytes, ...]
    answer: Answer
    is_open: bool = False


Routes = Mapping[str, Route]


def make_routes(catalog: Catalog, options: ServeOptions) -> dict[str, Route]:
    """Every path of the server but those that control it, with models' names and versions spelled out in it."""
    extensions = ["binary_tensor_data", *(["model_repository"] if options.repository_api else [])]
    routes = {
        "/v2": _constant({"name": "trpo-tf", "version": __version__, "extensions": extensions}),
        "/v2/health/live": _constant({"live": True})._replace(is_open=True),
        "/v2/health/ready": _readiness({"ready": catalog.is_ready})._replace(is_open=True),
    }
    for entry in catalog.entries:
        not_ready = _readiness({"name": entry.name, "ready": False})
        routes[f"/v2/models/{entry.name}/ready"] = not_ready
        routes[f"/v2/models/{entry.name}/versions/{entry.version}/ready"] = not_ready
    for name, release in catalog.releases.items():
        routes.update(_release_routes(name, release, options))
    routes["/openapi.json"] = _constant(describe(catalog, options))
    for path, page in console_pages(catalog).items():
        routes[path] = _page(page)
    return routes


def without_readiness(routes: Routes) -> dict[str, Route]:
    """The same routes of a server that is about to end: nothing is ready any more."""
    over = _readiness({"ready": False})
    return {
        path: over._replace(is_open=route.is_open) if path.endswith("/ready") else route
        for path, route in routes.items()
    }


def find_route(routes: Routes, target: bytes, method: bytes) -> Route:
    """The route of a request's target. Raises `HttpError`: 404, or 405 with the methods that there are."""
    path = _path(target)
    route = routes.get(path) or routes.get(path.removesuffix("/")) or _route_of_any_model(path, routes)
    if route is None:
        raise HttpError(404, _not_found(path, routes))
    if method not in route.methods:
        names = b", ".join(route.methods)
        raise HttpError(405, f"{path} takes {names.decode()}", b"allow: %b\r\n" % names)
    return route


def any_model(action: str) -> str:
    """Where the routes hold what `/v2/repository/models/NAME/ACTION` answers, for a NAME that need not be known yet.

    Its function is called with the name first. No request's path looks like this.
    """
    return f"*/{action}"


def _route_of_any_model(path: str, routes: Routes) -> Route | None:
    head, _, action = path.removesuffix("/").rpartition("/")
    route = routes.get(any_model(action)) if head.startswith(_REPOSITORY) else None
    return route and route._replace(answer=partial(route.answer, head.removeprefix(_REPOSITORY)))


def _release_routes(name: str, release: Release, options: ServeOptions) -> dict[str, Route]:
    """The paths of one model: of each version, and of whichever is to answer."""
    routes: dict[str, Route] = {}
    infer = {version: _inference(model.policy, version, options) for version, model in release.versions.items()}
    predict = {version: _prediction(model.policy, version, options) for version, model in release.versions.items()}
    names = list(release.versions)[::-1]  # newest first
    for suffix, version in [("", names[0]), *((f"/versions/{version}", version) for version in names)]:
        model = f"/v2/models/{name}{suffix}"
        routes[model] = _constant(model_metadata(release.versions[version].policy.manifest, *names))
        routes[f"{model}/ready"] = _constant({"name": name, "ready": True})
        routes[f"{model}/infer"] = infer[version] if suffix else _chosen(release, infer)
        model = f"/v1/models/{name}{suffix}"
        routes[model] = _constant(model_status(*([version] if suffix else names)))
        routes[f"{model}:predict"] = predict[version] if suffix else _chosen(release, predict)
    return routes


def _chosen(release: Release, routes: Mapping[str, Route]) -> Route:
    """Of versions' routes the one that is to answer next."""
    if len(routes) == 1:
        return next(iter(routes.values()))
    return Route((b"POST",), lambda headers, body: routes[release.choose().version].answer(headers, body))


def _inference(policy: Policy, version: str, options: ServeOptions) -> Route:
    """The protocol's `infer`."""
    manifest, act = policy.manifest, _acting(policy, options)

    def answer(headers: Headers, body: Body) -> Response:
        body = _decoded(headers, body, options)
        json_length = headers.get(binary.HEADER)
        with_json = body if json_length is None else body[: _size(json_length)]
        check_depth(with_json)
        if json_length is None:
            request = decode_request(body, manifest, max_batch=options.max_batch)
        else:
            request = binary.decode_binary(body, json_length, manifest, max_batch=options.max_batch)
        actions = act(request)
        if not request.binary:
            return Response(200, encode_response(actions, manifest, version, request.request_id))
        content, length = binary.encode_binary(actions, manifest, version, request.request_id)
        return Response(200, content, b"%b: %d\r\n" % (binary.HEADER, length), b"application/octet-stream")

    return Route((b"POST",), _with_errors(answer, options))


def _prediction(policy: Policy, version: str, options: ServeOptions) -> Route:
    """TensorFlow Serving's `predict`, whose answer has no place for the version: a header says it."""
    manifest, act = policy.manifest, _acting(policy, options)
    acted = b"model-version: %b\r\n" % quote(version).encode()

    def answer(headers: Headers, body: Body) -> Response:
        body = _decoded(headers, body, options)
        check_depth(body)
        request = decode_instances(body, manifest, max_batch=options.max_batch)
        return Response(200, encode_predictions(act(request)), acted)

    return Route((b"POST",), _with_errors(answer, options))


def _acting(policy: Policy, options: ServeOptions) -> Callable[[InferRequest], Array]:
    """From a request to its actions. It raises `RequestError` and `FloatingPointError`."""
    check = bounds_check(policy.manifest.observation, options.out_of_bounds)

    def act(request: InferRequest) -> Array:
        observations = request.observations
        if check is not None:
            try:
                observations = check(observations)
            except ValueError as error:
                raise RequestError(str(error)) from None
        return policy.run(observations, request.noise)

    return act


def _with_errors(answer: Callable[[Headers, Body], Response], options: ServeOptions) -> Callable[..., Response]:
    def guarded(headers: Headers, body: Body) -> Response:
        try:
            return answer(headers, body)
        except RequestError as error:
            raise HttpError(400, str(error)) from None
        except FloatingPointError as error:
            raise HttpError(500, str(error)) from None
        except TooLargeError:
            raise too_large(options.max_body) from None

    return guarded


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


def _constant(document: dict[str, Any], status: int = 200) -> Route:
    response = Response(status, orjson.dumps(document))
    return Route((b"GET", b"HEAD"), lambda _headers, _body: response)


def _page(page: Page) -> Route:
    response = Response(200, page.body, page.headers, page.content_type)
    return Route((b"GET", b"HEAD"), lambda _headers, _body: response, page.is_open)


def _readiness(document: dict[str, Any]) -> Route:
    return _constant(document, 200 if document["ready"] else 503)


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
