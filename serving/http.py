"""Serve a policy over HTTP: the Open Inference Protocol v2, JSON, as a bare ASGI application on uvicorn.

docs/serving.md lists every route, option and error. The policy runs inline in the event loop: its few
microseconds are cheaper than a hop to a thread.
"""

import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import uvicorn

from serving import __version__
from serving.codec import RequestError, decode_request, encode_response, model_metadata
from serving.manifest import Manifest, find_bundle
from serving.policy import Policy, load

MAX_BODY = 4 * 2**20
"""Largest request body in bytes; a longer one is refused before it is parsed."""

DRAIN_SECONDS = 10
"""How long requests in flight may take to finish after SIGTERM."""

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger(__name__)


class ServeError(OSError):
    """The server can't listen where it was told to; the message says what to do."""


class HttpError(Exception):
    """A request that is answered with `status` and {"error": message}."""

    def __init__(self, status: int, message: str, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class Disconnected(Exception):
    """The client is gone, so there is nobody to answer."""


class Route(NamedTuple):
    """What one path answers: the JSON for a request body, which GET has none of. POST, if not `get`."""

    get: bool
    answer: Callable[[bytearray], bytes]


def serve(
    bundle: str | Path, host: str = "127.0.0.1", port: int = 8080, *, public_key: str | Path | None = None
) -> None:
    """Serve the bundle, or the only one in a folder, until SIGTERM or SIGINT; call it in the main thread.

    With a public key the bundle's signature must hold. Port 0 picks a free one. Once requests are answered, one line
    on stderr says where.

    Raises:
        BundleError: the bundle is missing, damaged or not understood.
        ServeError: the address is in use, or not this machine's.
    """
    policy = load(find_bundle(Path(bundle)), public_key)
    with listen(host, port) as listener:
        port = listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        config = uvicorn.Config(
            application(policy),
            http="httptools",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        server = _Server(config, f"serving {policy.manifest.name} on http://{shown}:{port}\n")
        with _stopped_by_signals(server):
            server.run([listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the address. Raises `ServeError`."""
    if not 0 <= port <= 65535:
        raise ServeError(f"there is no port {port}; choose one from 1 to 65535, or 0 for a free one")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = (error.strerror or str(error)).split(" (")[0].lower()
        raise ServeError(
            f"can't listen on {host} port {port}: {reason}; choose another --port (0: a free one)"
        ) from None


def application(policy: Policy) -> Application:
    """The ASGI application that serves one policy."""
    routes = make_routes(policy)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        status, headers = 200, Headers()
        try:
            body = await _answer(routes, scope, receive)
        except Disconnected:
            return
        except HttpError as error:
            status, headers, body = error.status, error.headers, _error(str(error))
        except Exception:
            logger.exception("%s %r failed", scope["method"], scope["path"])
            status, body = 500, _error("internal error")
        head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})

    return app


def make_routes(policy: Policy) -> dict[str, Route]:
    """Every path of the server, with the model's name and version spelled out in it."""
    manifest, version = policy.manifest, model_version(policy.manifest)
    server = {"name": "trpo-tf", "version": __version__, "extensions": []}
    routes = {
        "/v2": _constant(server),
        "/v2/health/live": _constant({"live": True}),
        "/v2/health/ready": _constant({"ready": True}),
    }
    model = f"/v2/models/{manifest.name}"
    for path in (model, f"{model}/versions/{version}"):
        routes[path] = _constant(model_metadata(manifest, version))
        routes[f"{path}/ready"] = _constant({"name": manifest.name, "ready": True})
        routes[f"{path}/infer"] = Route(get=False, answer=lambda body: infer(policy, version, body))
    return routes


def infer(policy: Policy, version: str, body: bytearray) -> bytes:
    """The response to an inference request. Raises `HttpError`: 400 for a bad one, 500 for a bad action."""
    try:
        request = decode_request(body, policy.manifest)
        actions = policy.run(request.observations, request.noise)
    except RequestError as error:
        raise HttpError(400, str(error)) from None
    except FloatingPointError as error:
        raise HttpError(500, str(error)) from None
    return encode_response(actions, policy.manifest, version, request.request_id)


def model_version(manifest: Manifest) -> str:
    """The version that the model is served as: its provenance's `model_version`, or "1"."""
    return str(manifest.provenance.get("model_version", 1))


def _constant(document: dict[str, Any]) -> Route:
    body = orjson.dumps(document)
    return Route(get=True, answer=lambda _: body)


async def _answer(routes: dict[str, Route], scope: Scope, receive: Receive) -> bytes:
    route = routes.get(scope["path"].removesuffix("/"))
    if route is None:
        raise HttpError(404, _not_found(scope["path"], routes))
    allowed = ("GET", "HEAD") if route.get else ("POST",)
    if scope["method"] not in allowed:
        names = ", ".join(allowed)
        raise HttpError(405, f"{scope['path']} takes {names}", ((b"allow", names.encode()),))
    return route.answer(bytearray() if route.get else await _read_body(scope, receive))


async def _read_body(scope: Scope, receive: Receive) -> bytearray:
    """The whole body, read no further than `MAX_BODY`. Raises `HttpError`, `Disconnected`."""
    headers = dict(scope["headers"])
    if b"inference-header-content-length" in headers:
        raise HttpError(415, "binary tensors are not supported; send the data as JSON")
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise HttpError(415, "compressed bodies are not supported; send the JSON as it is")
    body = bytearray()
    size, more = int(headers.get(b"content-length", 0)), True
    while more and size <= MAX_BODY:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        body += message.get("body", b"")
        size, more = max(size, len(body)), message.get("more_body", False)
    if size > MAX_BODY:
        raise HttpError(413, f"the body is larger than {MAX_BODY} bytes; send fewer observations at a time")
    return body


def _not_found(path: str, routes: dict[str, Route]) -> str:
    parts = path.split("/")
    if parts[:3] == ["", "v2", "models"] and len(parts) > 3 and "/".join(parts[:4]) not in routes:
        return f"there is no model {parts[3]!r}"
    return f"there is nothing at {path}"


def _error(message: str) -> bytes:
    return orjson.dumps({"error": message})


class _Server(uvicorn.Server):
    """uvicorn's server, which says `announcement` on stderr once it answers."""

    def __init__(self, config: uvicorn.Config, announcement: str) -> None:
        super().__init__(config)
        self._announcement = announcement

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        sys.stderr.write(self._announcement)
        sys.stderr.flush()


@contextmanager
def _stopped_by_signals(server: uvicorn.Server) -> Iterator[None]:
    """Let SIGTERM and SIGINT end the server and nothing else.

    uvicorn raises them again when it has stopped, to the handlers that it found: these, instead of the
    default ones, which would end the process with another exit status than 0.
    """
    previous = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
