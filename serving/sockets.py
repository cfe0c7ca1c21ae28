"""What the server listens on, from its first connection to the last that it takes."""

import ctypes
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from serving.options import ServeError, ServeOptions

BACKLOG = 2048

# A BPF program on the TCP header: load the flags (byte 13), drop what has SYN set, let everything else pass.
_NO_NEW_CONNECTIONS = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
_SO_ATTACH_FILTER = 26


@contextmanager
def listeners(options: ServeOptions) -> Iterator[tuple[list[list[socket.socket]], list[str]]]:
    """Each worker's listening sockets, and where clients find them. Raises `ServeError`.

    On TCP each worker has a socket of its own, all on one port, and the kernel spreads connections by their addresses:
    64 of them came out as 34 and 30 on two workers. Of one socket that both inherit it was 63 and 1, since who wakes
    first accepts all. A Unix socket can't be opened twice, so workers do inherit it.
    """
    workers: list[list[socket.socket]] = [[] for _ in range(options.workers)]
    places = []
    with ExitStack() as stack:
        if (port := options.tcp_port) is not None:
            for own in workers:
                own.append(stack.enter_context(listen(options.host, port, shared=options.workers > 1)))
                port = own[0].getsockname()[1]
            places.append(f"{'https' if options.tls_cert else 'http'}://{_shown(options.host)}:{port}")
        if options.uds is not None:
            listener = stack.enter_context(listen_on_path(options.uds))
            for own in workers:
                own.append(listener)
            places.append(f"unix:{options.uds}")
        yield workers, places


def grpc_url(options: ServeOptions, port: int) -> str:
    """Where gRPC clients find the server."""
    return f"{'grpcs' if options.tls_cert else 'grpc'}://{_shown(options.host)}:{port}"


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket that listens on the address; `shared` with others of this user. Raises `ServeError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=shared)
    except OSError as error:
        raise ServeError(
            f"can't listen on {host} port {port}: {reason(error)}; choose another --port (0: a free one)"
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
            listener.listen(BACKLOG)
        except OSError as error:
            raise ServeError(f"can't listen on {path}: {reason(error)}; choose another --uds") from None
        own = Path(path).stat().st_ino
        try:
            yield listener
        finally:
            with suppress(OSError):
                if Path(path).stat().st_ino == own:
                    Path(path).unlink()


def refuse_new(listener: socket.socket) -> None:
    """Let nobody connect any more; who has connected can still be accepted, which closing would not allow."""
    if listener.family == socket.AF_UNIX:
        with suppress(OSError):
            Path(listener.getsockname()).unlink()
        return
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in _NO_NEW_CONNECTIONS)
    buffer = ctypes.create_string_buffer(program)
    with suppress(OSError):  # where there is no such filter, a connection made just now may be lost
        listener.setsockopt(
            socket.SOL_SOCKET,
            _SO_ATTACH_FILTER,
            struct.pack("@HP", len(_NO_NEW_CONNECTIONS), ctypes.addressof(buffer)),
        )


def _remove_abandoned(path: str) -> None:
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(Path(path).stat().st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(path) != 0:
                    Path(path).unlink()


def reason(error: OSError) -> str:
    """What the system says of an error, for a line of our own."""
    return (error.strerror or str(error)).split(" (")[0].lower()
