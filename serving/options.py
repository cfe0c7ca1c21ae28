"""The server's options: a frozen dataclass, from which the command line is generated.

See docs/reference/serve/server.md.
"""

import math
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from trpo_tf.serving.errors import ServeError as ServeError
from trpo_tf.serving.errors import quoted
from trpo_tf.serving.support.addresses import is_local

OUT_OF_BOUNDS = ("reject", "clip", "allow")

LOG_FORMATS = ("text", "json")

_POSITIVE = (
    "versions",
    "workers",
    "max_body",
    "max_buffered",
    "max_batch",
    "max_connections",
    "sequence_idle",
    "timeout",
    "keep_alive",
    "drain",
)
_MOST: dict[str, int] = {
    "poll": 10**6,  # timers of gRPC and of the event loop can't be longer than some weeks
    "timeout": 10**6,
    "keep_alive": 10**6,
    "drain": 10**6,
    "workers": 1024,
    "max_body": 2**31 - 1,  # sizes in gRPC have 32 bits
    "max_connections": 10**6,
    "max_sequences": 10**6,
    "sequence_idle": 10**6,
}


def _option(
    default: Any, text: str, *, metavar: str | None = None, choices: Sequence[str] | None = None, section: str = ""
) -> Any:
    """Return the field of an option. With `section`, it is the first under this heading in --help."""
    metadata = {"help": text, "metavar": metavar, "choices": choices, "section": section}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ServeOptions:
    """Options of the server; sizes in bytes, times in seconds. Raises `ServeError` for invalid values."""

    host: str = _option(
        "127.0.0.1",
        "address to listen on; one that other machines reach needs --keys, --tls-client-ca or --insecure",
        metavar="ADDRESS",
        section="addresses",
    )
    port: int = _option(-1, "TCP port, 0 for a free one; default: $PORT, or 8080; with --uds none", metavar="PORT")
    grpc_port: int = _option(-1, "also serve gRPC, on this port; 0 for a free one", metavar="PORT")
    grpc_uds: str | None = _option(None, "also serve gRPC on a Unix socket. Not with several --workers", metavar="PATH")
    uds: str | None = _option(None, "listen on a Unix socket, to which only this user can connect", metavar="PATH")
    uds_mode: str = _option(
        "600", "permissions of the Unix sockets: 660 lets its group connect, 666 every local user", metavar="OCTAL"
    )
    insecure: bool = _option(
        False, "accept everyone who can reach the address, without keys or client certificates", section="access"
    )
    keys: str | None = _option(
        None, "require a bearer key from this file; python -m trpo_tf.serving.keys makes keys", metavar="FILE"
    )
    tls_cert: str | None = _option(None, "serve TLS with this certificate chain (PEM)", metavar="FILE")
    tls_key: str | None = _option(None, "private key of the certificate (PEM, not encrypted)", metavar="FILE")
    tls_client_ca: str | None = _option(
        None, "accept only clients with a certificate that one of these authorities signed (PEM)", metavar="FILE"
    )
    allow_host: tuple[str, ...] = _option(
        (), "also answer requests whose Host header has this name; may be repeated", metavar="NAME"
    )
    cors_origin: tuple[str, ...] = _option(
        (),
        "allow requests from web pages of this origin: https://app.example, or * for any; may be repeated",
        metavar="ORIGIN",
    )
    public_key: str | None = _option(
        None, "load only bundles with a valid signature for this public key (PEM)", metavar="FILE", section="models"
    )
    out_of_bounds: str = _option(
        "allow",
        "reject observations outside the observation space, clip them to its bounds, or allow them",
        choices=OUT_OF_BOUNDS,
    )
    poll: float = _option(
        1.0, "time between scans for new, changed and removed models; 0: never scan", metavar="SECONDS"
    )
    versions: int = _option(1, "how many of the latest versions of a model to keep loaded", metavar="COUNT")
    canary: float = _option(
        0.0,
        "share of the requests without a version that the newest version answers; the version before it answers the "
        "rest. Needs --versions 2",
        metavar="SHARE",
    )
    allow_new_interface: bool = _option(False, "load versions even if their inputs or outputs break existing clients")
    strict_readiness: bool = _option(False, "report ready only if every model is loaded, rather than at least one")
    repository_api: bool = _option(False, "let clients load and unload models")
    codec: tuple[str, ...] = _option(
        (), "also serve the protocol that an installed package adds under this name; may be repeated", metavar="NAME"
    )
    workers: int = _option(1, "worker processes", metavar="COUNT", section="load and limits")
    max_body: int = _option(4 * 2**20, "largest request body, before and after decompression", metavar="BYTES")
    max_buffered: int = _option(
        64 * 2**20, "most bytes of all request bodies that are still arriving; beyond it 503", metavar="BYTES"
    )
    max_batch: int = _option(4096, "most observations in a request", metavar="ROWS")
    batching: bool = _option(False, "run requests that are waiting together as one batch")
    max_sequences: int = _option(
        1024,
        "most sequences whose state the server keeps, each row of a batch being one; beyond it 503; 0: keep none. Not "
        "with several --workers",
        metavar="COUNT",
    )
    sequence_idle: float = _option(60.0, "time until a sequence without a step is forgotten", metavar="SECONDS")
    max_connections: int = _option(
        512, "most connections per process; beyond it idle ones are closed, or 503", metavar="COUNT"
    )
    timeout: float = _option(
        20.0, "time for a client to send its request, and to receive the response", metavar="SECONDS"
    )
    keep_alive: float = _option(75.0, "time until an idle connection is closed", metavar="SECONDS")
    drain: float = _option(10.0, "time for requests in flight to finish after SIGTERM", metavar="SECONDS")
    log_format: str = _option(
        "text", "format of the log on stderr, one line per event", choices=LOG_FORMATS, section="logs and traces"
    )
    access_log: bool = _option(False, "also log one line per request")
    otlp_endpoint: str | None = _option(
        None, "send traces to this OpenTelemetry collector, by OTLP over HTTP", metavar="URL"
    )

    def __post_init__(self) -> None:
        self._check_each()
        self._check_listening()
        self._check_models()
        self._check_names()
        if self.is_reachable and not (self.insecure or self.keys or self.tls_client_ca):
            self._refuse_strangers()

    @property
    def tcp_port(self) -> int | None:
        """TCP port for HTTP; None to listen on a Unix socket only."""
        if self.port >= 0:
            return self.port
        return None if self.uds else 8080

    @property
    def serves_grpc(self) -> bool:
        """Whether gRPC is served, on a port or on a Unix socket."""
        return self.grpc_port >= 0 or self.grpc_uds is not None

    @property
    def kept_sequences(self) -> int:
        """How many sequences the server keeps: none with several workers, any of which may get the next step."""
        return self.max_sequences if self.workers == 1 else 0

    @property
    def is_reachable(self) -> bool:
        """Whether the server listens on TCP, for HTTP or gRPC, and not only on a Unix socket."""
        return self.tcp_port is not None or self.grpc_port >= 0

    @property
    def is_local(self) -> bool:
        """Whether `host` has only loopback addresses. Raises `ServeError`."""
        return is_local(self.host)

    @property
    def checks_host(self) -> bool:
        """Whether the Host header of requests over TCP is checked. Raises `ServeError`."""
        return bool(self.allow_host) or (not (self.keys or self.tls_client_ca) and self.is_local)

    def _check_each(self) -> None:
        for option in fields(self):
            choices, value = option.metadata["choices"], getattr(self, option.name)
            if value == "":
                raise ServeError(f"{flag(option.name)} is empty; give a value, or leave it out")
            if isinstance(value, str) and "\0" in value:
                raise ServeError(f"{flag(option.name)} has a NUL character; leave it out")
            if choices and value not in choices:
                raise ServeError(f"{flag(option.name)} must be one of {', '.join(choices)}, not {quoted(value)}")
            if option.name in _MOST and value > _MOST[option.name]:
                raise ServeError(f"{flag(option.name)} must be at most {_MOST[option.name]}, not {quoted(value)}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ServeError(f"{flag(name)} must be more than 0, not {quoted(value)}")

    def _check_models(self) -> None:
        if not self.poll >= 0:
            raise ServeError(f"--poll must be 0 or more seconds, not {self.poll}")
        if self.max_sequences < 0:
            raise ServeError(f"--max-sequences must be 0 or more, not {self.max_sequences}")
        if not 0 <= self.canary < 1:
            raise ServeError(f"--canary must be a share between 0 and 1, not {self.canary}")
        if self.canary and self.versions < 2:
            raise ServeError("--canary shares requests between two versions; keep both loaded with --versions 2")
        is_open = self.is_reachable or int(self.uds_mode, 8) & stat.S_IWOTH
        if self.repository_api and is_open and not (self.keys or self.tls_client_ca):
            raise ServeError(
                "--repository-api lets who asks load and unload models: give --keys or --tls-client-ca, or only --uds "
                "with --uds-mode 600 or 660"
            )

    def _check_listening(self) -> None:
        for name in ("port", "grpc_port"):
            if not -1 <= (port := getattr(self, name)) <= 65535:
                raise no_port(name, port)
        if not re.fullmatch("0?[0-7]{3}", self.uds_mode):
            raise ServeError(f"--uds-mode takes three octal digits such as 660, not {quoted(self.uds_mode)}")
        if self.grpc_port > 0 and self.grpc_port == self.tcp_port:
            raise ServeError(f"HTTP and gRPC can't share port {self.grpc_port}; choose another --port or --grpc-port")
        if self.grpc_uds is not None and self.grpc_uds == self.uds:
            raise ServeError("HTTP and gRPC can't share a Unix socket; choose another --uds or --grpc-uds")
        if self.grpc_uds is not None and self.workers > 1:
            raise ServeError("several --workers can't share --grpc-uds; give --grpc-port, or leave out --workers")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ServeError("--tls-cert and --tls-key belong together; give both")
        if self.tls_client_ca and not self.tls_cert:
            raise ServeError("--tls-client-ca needs --tls-cert and --tls-key")

    def _check_names(self) -> None:
        if self.otlp_endpoint is not None and not _is_url(self.otlp_endpoint):
            said = quoted(self.otlp_endpoint)
            raise ServeError(f"--otlp-endpoint must be a URL such as http://127.0.0.1:4318, not {said}")
        if (self.otlp_endpoint or "").rstrip("/").endswith("/v1/traces"):
            raise ServeError("--otlp-endpoint is the collector's address; leave out /v1/traces, which the server adds")
        for name in self.allow_host:
            if not re.fullmatch(r"[\w.-]+|\[?[0-9a-fA-F:.]+\]?", name):
                raise ServeError(
                    f"--allow-host takes a name such as policies.example, without a port, not {quoted(name)}"
                )
        for origin in self.cors_origin:
            if origin != "*" and not re.fullmatch(r"[a-zA-Z][\w+.-]*://[^/@?#\s]+", origin):
                raise ServeError(
                    f"--cors-origin takes an origin such as https://app.example, or *, not {quoted(origin)}"
                )

    def _refuse_strangers(self) -> None:
        try:
            if is_local(self.host):
                return
        except ServeError as error:
            raise ServeError(
                f"{error}, and for one that others reach give --keys or --tls-client-ca, or --insecure"
            ) from None
        raise ServeError(
            f"anybody who reaches --host {self.host} could ask this server: give --keys or --tls-client-ca, or "
            "--insecure if the network is trusted"
        )


def kinds() -> dict[str, type]:
    """Return the type of each option by its name: str also if its default is None, tuple for a list of strings."""
    return {option.name: str if option.default is None else type(option.default) for option in fields(ServeOptions)}


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and not re.search(r"\s", text)
        )
    except ValueError:  # invalid brackets or port
        return False


def no_port(name: str, port: int) -> ServeError:
    """Return the error for a port that there is not; `name` is the option's."""
    return ServeError(f"there is no {flag(name)} {quoted(port)}; choose one from 1 to 65535, or 0 for a free one")


def flag(name: str) -> str:
    """Return an option's flag on the command line."""
    return f"--{name.replace('_', '-')}"
