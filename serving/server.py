"""The server's life: what it listens on, how it starts, and how it ends."""

import asyncio
import signal
import socket
import ssl
import stat
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import uvloop

from serving.batching import Gatherer
from serving.catalog import Catalog, Model, Release
from serving.gathering import GatheringConnection
from serving.http import SWEEP_SECONDS, Connection, Site
from serving.keys import KeyFileError, read_keys
from serving.manifest import find_bundle
from serving.options import ServeError, ServeOptions
from serving.policy import load
from serving.routes import make_routes, model_version

_BACKLOG = 2048


def serve(bundle: str | Path, options: ServeOptions | None = None) -> None:
    """Serve the bundle, or the only one in a folder, until SIGTERM or SIGINT; call it in the main thread.

    Once requests are answered, a line on stderr says where.

    Raises:
        BundleError: the bundle is missing, damaged or not understood.
        ServeError: an address, a key file or a certificate can't be used.
    """
    options = options or ServeOptions()
    policy = load(find_bundle(Path(bundle)), options.public_key)
    tls = _tls(options)
    try:
        keys = read_keys(options.keys) if options.keys else ()
    except KeyFileError as error:
        raise ServeError(str(error)) from None
    site = Site(make_routes(policy, options), options, keys)
    model = Model(policy.manifest.name, model_version(policy.manifest), policy)
    catalog = Catalog({model.name: Release({model.version: model}, lambda: model)})
    with ExitStack() as stack:
        listeners, places = [], []
        if options.tcp_port is not None:
            listeners.append(stack.enter_context(listen(options.host, options.tcp_port)))
            shown = f"[{options.host}]" if ":" in options.host else options.host
            places.append(f"{'https' if tls else 'http'}://{shown}:{listeners[-1].getsockname()[1]}")
        if options.uds is not None:
            listeners.append(stack.enter_context(listen_on_path(options.uds)))
            places.append(f"unix:{options.uds}")
        loop = uvloop.new_event_loop()
        stack.callback(loop.close)
        loop.run_until_complete(_run(site, listeners, tls, places, lambda: catalog))


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the address. Raises `ServeError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ServeError(
            f"can't listen on {host} port {port}: {_reason(error)}; choose another --port (0: a free one)"
        ) from None


@contextmanager
def listen_on_path(path: str) -> Iterator[socket.socket]:
    """A Unix socket that only this user can connect to, removed in the end. Raises `ServeError`.

    One that a killed server has left is replaced; one that is listened on is not.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            _remove_abandoned(path)
            listener.bind(path)
            Path(path).chmod(stat.S_IRUSR | stat.S_IWUSR)  # before it listens, so that nobody has connected
            listener.listen(_BACKLOG)
        except OSError as error:
            raise ServeError(f"can't listen on {path}: {_reason(error)}; choose another --uds") from None
        try:
            yield listener
        finally:
            with suppress(OSError):
                Path(path).unlink()


def _remove_abandoned(path: str) -> None:
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(Path(path).stat().st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(path) != 0:
                    Path(path).unlink()


async def _run(
    site: Site,
    listeners: list[socket.socket],
    tls: ssl.SSLContext | None,
    places: list[str],
    current: Callable[[], Catalog],
) -> None:
    loop = asyncio.get_running_loop()
    stop_grpc = None
    asked, asked_again = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (asked_again if asked.is_set() else asked).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    gatherer = Gatherer(site.options.max_batch) if site.options.batching else None
    connect = partial(GatheringConnection, site, gatherer) if gatherer else partial(Connection, site)
    if site.options.grpc_port >= 0:
        stop_grpc = await _start_grpc(site, places, current, gatherer)
    handshake = site.options.timeout if tls else None
    servers = [
        await loop.create_server(connect, sock=listener, backlog=_BACKLOG, ssl=tls, ssl_handshake_timeout=handshake)
        for listener in listeners
    ]
    sweeping = asyncio.ensure_future(_sweep(site))
    sys.stderr.write(f"serving {' and '.join(current().releases)} on {' and '.join(places)}\n")
    sys.stderr.flush()
    await asked.wait()
    for server in servers:
        server.close()
    site.stop()
    await asyncio.gather(_drain(site, asked_again), *([stop_grpc(asked_again)] if stop_grpc else []))
    sweeping.cancel()
    await asyncio.sleep(0)


async def _sweep(site: Site) -> None:
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        site.sweep(asyncio.get_running_loop().time())


async def _drain(site: Site, at_once: asyncio.Event) -> None:
    """Wait until no connection is left, or the time is over, or it is to end at once."""
    with suppress(TimeoutError):
        await asyncio.wait_for(_emptied(site, at_once), site.options.drain)
    for connection in list(site.connections):
        connection.abort()


async def _emptied(site: Site, at_once: asyncio.Event) -> None:
    while site.connections and not at_once.is_set():
        await asyncio.sleep(0.01)


async def _start_grpc(
    site: Site, places: list[str], current: Callable[[], Catalog], gatherer: Gatherer | None
) -> Callable[[asyncio.Event], Awaitable[None]]:
    """Serve gRPC too, and add where to `places`; how to stop it. Raises `ServeError`."""
    try:
        from serving.grpc_server import GrpcServer
    except ImportError as error:
        raise ServeError(f"--grpc-port needs {error.name}; pip install 'trpo-tf[grpc]'") from None
    server = GrpcServer(current, site.options, site.keys, gatherer)
    places.append(await server.start())
    return server.stop


def _tls(options: ServeOptions) -> ssl.SSLContext | None:
    """TLS 1.2 at least, with client certificates if they are asked for. Raises `ServeError`."""
    if not options.tls_cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key)
        if options.tls_client_ca:
            context.load_verify_locations(options.tls_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:
        raise ServeError(f"the TLS certificate or key can't be used: {_reason(error)}; give PEM files") from None
    return context


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).split(" (")[0].lower()
