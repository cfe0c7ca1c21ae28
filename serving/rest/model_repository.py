"""The protocol's model repository extension: an index of versions, and requests to load and unload models."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import orjson

from trpo_tf.serving.codecs.parsing.json_body import parse_object
from trpo_tf.serving.errors import BundleError, RequestError
from trpo_tf.serving.repository.catalog import Catalog
from trpo_tf.serving.rest.endpoints import Body, Headers
from trpo_tf.serving.rest.responses import RETRY_SECONDS, HttpError, Response
from trpo_tf.serving.rest.routes import Route, any_model

Control = Callable[[str, str], Awaitable[None]]
"""Function of `load` or `unload` and a model's name, which returns once every worker has done so.

Raises `LookupError` if there is no such model, `BundleError` if it can't be loaded, `TimeoutError`.
"""

INDEX = "/v2/repository/index"
_STATES = {True: "READY", False: "UNAVAILABLE"}


def control_routes(catalog: Catalog, control: Control) -> dict[str, Route]:
    """Return the extension's routes; those that load and unload answer with a future."""
    return {
        INDEX: Route((b"POST",), partial(_index, catalog)),
        **{any_model(action): Route((b"POST",), partial(_change, control, action)) for action in ("load", "unload")},
    }


def _index(catalog: Catalog, _headers: Headers, body: Body) -> Response:
    """List every version that the repository holds; with `{"ready": true}` only loaded ones."""
    only_ready = _parsed(body).get("ready")
    if not isinstance(only_ready, bool | None):
        raise HttpError(400, "ready must be true or false")
    found = [
        {"name": entry.name, "version": entry.version, "state": _STATES[entry.is_loaded], "reason": entry.reason}
        for entry in catalog.entries
        if entry.is_loaded or not only_ready
    ]
    return Response(200, orjson.dumps(found))


def _change(control: Control, action: str, name: str, _headers: Headers, body: Body) -> "asyncio.Task[Response]":
    parameters = _parsed(body).get("parameters")
    if parameters is not None and (not isinstance(parameters, dict) or parameters.keys() - {"unload_dependents"}):
        raise HttpError(400, "parameters are not taken: a model is loaded as it is in the repository")
    return asyncio.ensure_future(_answer(control, action, name))


async def _answer(control: Control, action: str, name: str) -> Response:
    try:
        await control(action, name)
    except LookupError as error:
        return HttpError(404, str(error.args[0])).response
    except BundleError as error:
        return HttpError(400, str(error)).response
    except TimeoutError:
        return HttpError(503, "not every worker has done so yet", b"retry-after: %d\r\n" % RETRY_SECONDS).response
    return Response(200, b"{}")


def _parsed(body: Body) -> dict[str, Any]:
    """Parse the body as JSON; an empty one is an empty object. Raises `HttpError`."""
    try:
        return parse_object(body or b"{}")
    except RequestError as error:
        raise HttpError(400, str(error)) from None
