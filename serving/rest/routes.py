"""Routes: each path with its methods and its handler, a function or a policy's endpoint.

Routes know nothing of connections: `serving.rest.connection` reads requests and writes responses.
"""

import asyncio
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import orjson

from trpo_tf.serving.codecs.parameters import SequenceStep
from trpo_tf.serving.codecs.paths import PREDICT, decoded_path, name_in, no_version, not_found, part_of
from trpo_tf.serving.codecs.tfserving import model_status
from trpo_tf.serving.codecs.v2_json import model_metadata, server_metadata
from trpo_tf.serving.console.pages import Page, console_models, console_pages
from trpo_tf.serving.errors import quoted
from trpo_tf.serving.metrics.series import Metrics
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.repository.catalog import Catalog, Model, Release
from trpo_tf.serving.rest.endpoints import Protocol, RestEndpoint, served_protocols
from trpo_tf.serving.rest.responses import NO_CONTENT, HttpError, Response

_REPOSITORY = "/v2/repository/models/"

Answer = Callable[..., "Response | asyncio.Future[Response]"]
"""Function of a request's headers and body. It may return a future, whose response is its connection's last."""


Select = Callable[[], RestEndpoint]
"""Function that returns the endpoint of the model version for the next request; called once a request."""


class Route(NamedTuple):
    """Handler of one path.

    Attributes:
        answer: makes the response; None where a policy acts.
        is_open: whether requests need no key.
        select: returns the policy's endpoint; None where no policy acts.
        is_health: whether requests are answered even if all connections are taken.
        start: returns the endpoint for a new sequence, where it can differ from that of `select`; None otherwise.
        place: names protocol, model and version, where a policy acts.
        is_retired: whether the version is not loaded any more, so that only running sequences go on.
    """

    methods: tuple[bytes, ...]
    answer: Answer | None = None
    is_open: bool = False
    select: Select | None = None
    is_health: bool = False
    start: Select | None = None
    place: str = ""
    is_retired: bool = False


Routes = Mapping[str, Route]


ReleaseRoutes = dict[str, tuple[Release, Routes]]
"""Each release with its routes, by model name."""


def make_routes(
    catalog: Catalog, options: ServeOptions, metrics: Metrics, known: ReleaseRoutes | None = None
) -> dict[str, Route]:
    """Return the routes of all paths but the repository extension's; paths contain the models' names and versions.

    `known` has the routes of the catalog before, and is brought up to date. Only new releases get new routes: making
    those of many models at once would delay the event loop.

    Raises `ServeError` for a codec that can't be served.
    """
    known = {} if known is None else known
    protocols = served_protocols(options)
    routes = {
        "/v2": _constant(
            server_metadata(has_repository=options.repository_api, keeps_sequences=options.kept_sequences > 0)
        ),
        "/v2/health/live": _constant({"live": True})._replace(is_open=True, is_health=True),
        "/v2/health/ready": _readiness({"ready": catalog.is_ready})._replace(is_open=True),
        "/v2/models": _constant({"models": _listed(catalog)}),
    }
    for entry in (entry for entry in catalog.entries if not entry.is_loaded):
        not_ready, path = _readiness({"name": entry.name, "ready": False}), f"/v2/models/{part_of(entry.name)}"
        routes[f"{path}/ready"] = not_ready
        routes[f"{path}/versions/{part_of(entry.version)}/ready"] = not_ready
    for name in known.keys() - catalog.releases.keys():
        del known[name]
    for name, release in catalog.releases.items():
        if name not in known or known[name][0] is not release:
            known[name] = release, _release_routes(name, release, protocols, options, metrics)
        routes.update(known[name][1])
    routes["/metrics"] = Route((b"GET", b"HEAD"), lambda _headers, _body: _scrape(metrics))
    routes["/openapi.json"] = _made_once(lambda: _describe(catalog, options))
    routes["/console/models"] = _made_once(lambda: console_models(catalog))
    for path, page in console_pages(catalog).items():
        routes[path] = _page(page)
    return routes


def _listed(catalog: Catalog) -> list[dict[str, Any]]:
    """List every model in the repository, with its loaded versions, newest first."""
    names = sorted({*(entry.name for entry in catalog.entries), *catalog.releases})
    versions = {name: [*release.versions][::-1] for name, release in catalog.releases.items()}
    return [
        {
            "name": name,
            "versions": versions.get(name, []),
            "state": "READY" if name in versions else "UNAVAILABLE",
        }
        for name in names
    ]


def retired_routes(before: Routes, after: Routes, places: Container[Hashable]) -> dict[str, Route]:
    """Return the routes that a reload removed, and that the running sequences at these places need."""
    return {
        path: route._replace(is_retired=True)
        for path, route in before.items()
        if route.place in places and path not in after
    }


def check_running(model: Model, sequence: SequenceStep | None) -> None:
    """Raise `HttpError` for a request to a version that is not loaded any more, unless it goes on with a sequence."""
    if sequence is None or sequence.is_start:
        raise HttpError(404, no_version(model.name, model.version))


def without_readiness(routes: Routes) -> dict[str, Route]:
    """Return the routes of a server that is stopping: no server or model is ready."""
    over = _readiness({"ready": False})
    return {
        path: over._replace(is_open=route.is_open) if route.is_health and path.endswith("/ready") else route
        for path, route in routes.items()
    }


def find_route(routes: Routes, target: bytes, method: bytes) -> Route:
    """Return the route of a request's target. Raises `HttpError`: 400, 404, or 405 with the allowed methods."""
    try:
        path = decoded_path(target)
    except ValueError as error:
        raise HttpError(400, str(error)) from None
    route = routes.get(path) or routes.get(path.removesuffix("/")) or _route_of_any_model(path, routes)
    if path == "*" and method == b"OPTIONS":
        return no_content(b"allow: GET, HEAD, POST, OPTIONS\r\n")
    if route is None:
        raise HttpError(404, not_found(path, routes))
    if method not in route.methods:
        names = b", ".join(route.methods)
        if method == b"OPTIONS":
            return no_content(b"allow: %b, OPTIONS\r\n" % names)._replace(is_open=route.is_open)
        raise HttpError(405, f"{quoted(path)[1:-1]} takes {names.decode()}", b"allow: %b\r\n" % names)
    return route


def any_model(action: str) -> str:
    """Return the key under which routes hold `/v2/repository/models/NAME/ACTION`, for every NAME, known or not.

    The route's `answer` takes the name as its first argument. No request's path equals such a key.
    """
    return f"*/{action}"


def _route_of_any_model(path: str, routes: Routes) -> Route | None:
    head, _, action = path.removesuffix("/").rpartition("/")
    route = routes.get(any_model(action)) if head.startswith(_REPOSITORY) else None
    if route is None or route.answer is None:
        return None
    return route._replace(answer=partial(route.answer, name_in(head.removeprefix(_REPOSITORY))))


def _release_routes(
    name: str, release: Release, protocols: Sequence[Protocol], options: ServeOptions, metrics: Metrics
) -> dict[str, Route]:
    """Return the routes of one model: with each version in the path, and without a version."""
    routes: dict[str, Route] = {}
    names = list(release.versions)[::-1]  # newest first
    endpoints = {
        protocol: {version: protocol.endpoint(model, options, metrics) for version, model in release.versions.items()}
        for protocol in protocols
    }
    for suffix, version in [("", names[0]), *((f"/versions/{part_of(version)}", version) for version in names)]:
        path = f"/v2/models/{part_of(name)}{suffix}"
        routes[path] = _constant(model_metadata(release.versions[version].policy.manifest, *names))
        routes[f"{path}/ready"] = _readiness({"name": name, "ready": True})
        path = f"/v1/models/{part_of(name)}{suffix}"
        if not path.endswith(PREDICT):
            routes[path] = _constant(model_status(name, *([version] if suffix else names)))
        for protocol, of_version in endpoints.items():
            path = f"{protocol.prefix}/{part_of(name)}{suffix}"
            if not (protocol.suffix.startswith(":") and path.endswith(protocol.suffix)):  # the name of a model
                acting = _acting(release, of_version, version if suffix else None)
                routes[f"{path}{protocol.suffix}"] = acting._replace(place=f"{path}{protocol.suffix}")
    return routes


def _acting(release: Release, endpoints: Mapping[str, RestEndpoint], version: str | None) -> Route:
    """Return the route where `version` acts; with None, the release chooses one for each request or sequence."""
    if version is None and len(endpoints) > 1:
        return Route(
            (b"POST",),
            select=lambda: endpoints[release.choose().version],
            start=lambda: endpoints[release.choose_for_sequence().version],
        )
    only = endpoints[version or next(iter(endpoints))]
    return Route((b"POST",), select=lambda: only)


# Two modules are imported at the first request for what they make, so that a server starts faster.


def _describe(catalog: Catalog, options: ServeOptions) -> bytes:
    from trpo_tf.serving.rest.openapi import describe

    return orjson.dumps(describe(catalog, options))


def _scrape(metrics: Metrics) -> Response:
    from trpo_tf.serving.metrics.prometheus import CONTENT_TYPE, render

    return Response(200, render(metrics), content_type=CONTENT_TYPE)


def no_content(headers: bytes) -> Route:
    """Return a route that answers 204 with these headers, also without a key."""
    response = Response(NO_CONTENT, b"", headers)
    return Route((b"OPTIONS",), lambda _headers, _body: response, is_open=True)


def _constant(document: dict[str, Any], status: int = 200) -> Route:
    response = Response(status, orjson.dumps(document))
    return Route((b"GET", b"HEAD"), lambda _headers, _body: response)


def _made_once(make: Callable[[], bytes]) -> Route:
    """Return the route of a JSON document that is made at the first request for it."""
    content = cache(make)
    return Route((b"GET", b"HEAD"), lambda _headers, _body: Response(200, content()))


def _page(page: Page) -> Route:
    response = Response(200, page.body, page.headers, page.content_type)
    return Route((b"GET", b"HEAD"), lambda _headers, _body: response, page.is_open)


def _readiness(document: dict[str, Any]) -> Route:
    return _constant(document, 200 if document["ready"] else 503)._replace(is_health=True)
