"""The gRPC library's server: its options, its certificates and its dispatch of calls."""

import asyncio
import logging
from collections.abc import Mapping

import grpc
from grpc._cython import cygrpc

from trpo_tf.serving.errors import ServeError
from trpo_tf.serving.grpc.limits import MAX_METADATA
from trpo_tf.serving.listening.sockets import GrpcPlace
from trpo_tf.serving.listening.tls import Tls, TlsFiles
from trpo_tf.serving.options import ServeOptions

CALLS_A_CONNECTION = 128
"""Concurrent calls of one connection; its client holds further ones back."""

HANDSHAKE_SECONDS = 5.0
"""How long a connection may take until it speaks HTTP/2."""

PING_SECONDS = 30.0
"""Interval of keepalive pings to a silent client."""

CLIENTS_PING_SECONDS = 0.2
"""Shortest interval of a client's own pings. gRPC would close the connection, with its streams, below five minutes."""

# gRPC reads metadata that isn't UTF-8 as Latin-1, and would log a line and a traceback each time.
logging.getLogger(cygrpc.__name__).addFilter(lambda record: not str(record.msg).startswith("Invalid encoding on"))

Handlers = Mapping[str, grpc.RpcMethodHandler]


def make_server(
    options: ServeOptions, handlers: Handlers, unknown: grpc.RpcMethodHandler, *, is_shared: bool
) -> grpc.aio.Server:
    """Return a server that dispatches calls to `handlers` by path, and other paths to `unknown`."""
    resolver = _Resolver(handlers, unknown)
    settings = _channel_options(options, is_shared=is_shared)
    if not hasattr(cygrpc.AioServer, "_make_request_call_future"):  # here a bad path ends one call alone
        return grpc.aio.server(handlers=[resolver], options=settings)
    kind, cygrpc.AioServer = cygrpc.AioServer, _DispatchingServer
    try:
        server = grpc.aio.server(options=settings)
    finally:
        cygrpc.AioServer = kind
    server._server.resolver, server._server.calls = resolver, set()
    for path, handler in handlers.items():
        service, name = path.removeprefix("/").split("/")
        server.add_registered_method_handlers(service, {name: handler})
    return server


def open_place(server: grpc.aio.Server, place: GrpcPlace, tls: Tls | None) -> None:
    """Listen on the port or the Unix socket. Raises `ServeError`."""
    credentials = _credentials(tls) if tls else None
    with place.opening():
        for address in place.addresses:
            try:
                if credentials is None:
                    server.add_insecure_port(address)
                else:
                    server.add_secure_port(address, credentials)
            except RuntimeError:
                why = " or with this certificate" if credentials else ""
                option = "--grpc-uds" if address.startswith("unix:") else "--grpc-port"
                raise ServeError(f"gRPC can't listen on {address}{why}; choose another {option}") from None


class _Resolver(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds the handler of a call, by gRPC's interface."""

    def __init__(self, handlers: Handlers, unknown: grpc.RpcMethodHandler) -> None:
        self._handlers, self._unknown = handlers, unknown

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return self._handlers.get(call.method, self._unknown)

    resolve_handler = service


class _DispatchingServer(cygrpc.AioServer):  # type: ignore[misc]
    """Accepts calls in a loop for each method, instead of in gRPC's own loop.

    gRPC's loop decodes the path of an unregistered method as UTF-8. If that fails, the loop ends, and no further call
    is answered. Here such a path is not decoded. This is also faster.
    """

    resolver: _Resolver
    calls: set[asyncio.Task[None]]

    def _make_request_call_future(self, method: bytes | None) -> "asyncio.Future[None]":
        """Return the future that gRPC's loop waits for. It ends with the server, by the exception that gRPC expects."""
        return asyncio.ensure_future(self._take(method))

    async def _take(self, method: bytes | None) -> None:
        """Answer the calls of a method; with None, the calls of unknown methods."""
        loop, name = asyncio.get_running_loop(), (method or b"").decode()
        while True:
            state = await (self._request_call() if method is None else self._request_registered_call(method))
            call = cygrpc._handle_rpc(name, self.resolver, (), state, loop, False)
            task = loop.create_task(cygrpc._schedule_rpc_coro(call, state, loop, name))
            self.calls.add(task)
            task.add_done_callback(self.calls.discard)


def _channel_options(options: ServeOptions, *, is_shared: bool) -> list[tuple[str, int]]:
    return [
        # Only workers share a port: a second server would take half of the calls.
        ("grpc.so_reuseport", int(is_shared)),
        ("grpc.max_receive_message_length", options.max_body),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", MAX_METADATA),
        ("grpc.absolute_max_metadata_size", MAX_METADATA),
        ("grpc.max_allowed_incoming_connections", 2 * options.max_connections),
        ("grpc.max_concurrent_streams", CALLS_A_CONNECTION),
        # It also counts calls that are answered but not freed yet, and so refused calls of clients that keep the limit.
        ("grpc.http.overload_protection", 0),
        # Otherwise HTTP/2 would let a fast client send up to 16 MiB of each message before anybody reads it.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.max_connection_idle_ms", int(1000 * options.keep_alive)),
        ("grpc.server_handshake_timeout_ms", int(1000 * min(options.timeout, HANDSHAKE_SECONDS))),
        # Without pings a vanished client's connection, with a watch open, would stay for two hours.
        ("grpc.keepalive_time_ms", int(1000 * PING_SECONDS)),
        ("grpc.keepalive_timeout_ms", int(1000 * options.timeout)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", int(1000 * CLIENTS_PING_SECONDS)),
    ]


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    """Return credentials that use the current certificates at each new connection."""
    used = tls.files

    def renew() -> grpc.ServerCertificateConfiguration | None:
        nonlocal used
        if tls.files is used:
            return None
        used = tls.files
        return _certificates(used)

    return grpc.dynamic_ssl_server_credentials(
        _certificates(used), renew, require_client_authentication=used.authority is not None
    )


def _certificates(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(files.key, files.certificate)], files.authority)
