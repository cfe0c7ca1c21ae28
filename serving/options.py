"""The server's options: one frozen dataclass, which the command line is made from and docs/serving.md explains."""

import argparse
import ipaddress
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from serving.errors import ServeError as ServeError

OUT_OF_BOUNDS = ("reject", "clip", "allow")

LOG_FORMATS = ("text", "json")


def _option(default: Any, text: str, *, metavar: str | None = None, choices: Sequence[str] | None = None) -> Any:
    kind = str if default is None else type(default)
    arguments = {"action": "store_true"} if kind is bool else {"type": kind, "metavar": metavar, "choices": choices}
    return field(default=default, metadata={"help": text, "arguments": arguments})


@dataclass(frozen=True)
class ServeOptions:
    """How to serve; sizes in bytes, times in seconds. Raises `ServeError` when made with values that can't be."""

    host: str = _option("127.0.0.1", "address to listen on", metavar="ADDRESS")
    port: int = _option(-1, "TCP port; 0 picks a free one ($PORT or 8080; none beside --uds)", metavar="PORT")
    grpc_port: int = _option(-1, "also serve gRPC on this port; 0 picks a free one", metavar="PORT")
    uds: str | None = _option(None, "listen on a Unix socket, readable by this user only", metavar="PATH")
    insecure: bool = _option(False, "allow an address other than this machine's without keys or client certificates")
    keys: str | None = _option(None, "ask for a bearer key of this file (python -m serving.keys)", metavar="FILE")
    tls_cert: str | None = _option(None, "serve TLS with this certificate chain, PEM", metavar="FILE")
    tls_key: str | None = _option(None, "the certificate's private key, PEM", metavar="FILE")
    tls_client_ca: str | None = _option(None, "ask for client certificates that these have signed", metavar="FILE")
    public_key: str | None = _option(None, "refuse a bundle whose signature does not hold for this key", metavar="FILE")
    out_of_bounds: str = _option("allow", "observations outside the space", choices=OUT_OF_BOUNDS)
    poll: float = _option(1.0, "between looks for new, changed and removed versions; 0 never looks", metavar="SECONDS")
    versions: int = _option(1, "latest versions of a model to keep loaded", metavar="COUNT")
    canary: float = _option(0.0, "share of requests without a version that the newest one gets", metavar="SHARE")
    repository_api: bool = _option(False, "let clients load and unload models")
    workers: int = _option(1, "processes that share the work", metavar="COUNT")
    max_body: int = _option(4 * 2**20, "largest body, also once decompressed", metavar="BYTES")
    max_buffered: int = _option(64 * 2**20, "bodies under way, together; beyond it 503", metavar="BYTES")
    max_batch: int = _option(4096, "most observations in a request", metavar="ROWS")
    batching: bool = _option(False, "run requests that wait at the same time as one batch")
    max_connections: int = _option(512, "connections at a time; beyond it 503", metavar="COUNT")
    timeout: float = _option(20.0, "to send a request, and to take its answer", metavar="SECONDS")
    keep_alive: float = _option(75.0, "until an idle connection is closed", metavar="SECONDS")
    log_format: str = _option("text", "how events are logged on stderr", choices=LOG_FORMATS)
    access_log: bool = _option(False, "log a line for each request")
    otlp_endpoint: str | None = _option(None, "send traces to this OpenTelemetry collector (HTTP)", metavar="URL")
    drain: float = _option(10.0, "for requests under way after SIGTERM", metavar="SECONDS")

    def __post_init__(self) -> None:
        for name in (
            "versions",
            "workers",
            "max_body",
            "max_buffered",
            "max_batch",
            "max_connections",
            "timeout",
            "keep_alive",
            "drain",
        ):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ServeError(f"{_flag(name)} must be more than 0, not {value}")
        if not 0 <= self.poll < math.inf:
            raise ServeError(f"--poll must be 0 or more seconds, not {self.poll}")
        if not 0 <= self.canary < 1:
            raise ServeError(f"--canary must be a share between 0 and 1, not {self.canary}")
        if self.canary and self.versions < 2:
            raise ServeError("--canary shares requests between two versions; keep both loaded with --versions 2")
        if self.repository_api and self.is_reachable and not (self.keys or self.tls_client_ca):
            raise ServeError(
                "--repository-api lets who asks load and unload models: give --keys or --tls-client-ca, or only --uds"
            )
        for port in (self.port, self.grpc_port):
            if not -1 <= port <= 65535:
                raise ServeError(f"there is no port {port}; choose one from 1 to 65535, or 0 for a free one")
        if self.grpc_port == 0 and self.workers > 1:
            raise ServeError("--workers share one --grpc-port: choose one from 1 to 65535")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ServeError("--tls-cert and --tls-key belong together; give both")
        if self.tls_client_ca and not self.tls_cert:
            raise ServeError("--tls-client-ca needs --tls-cert and --tls-key")
        if self.otlp_endpoint is not None and not re.match("https?://[^/]", self.otlp_endpoint):
            raise ServeError(f"--otlp-endpoint must be a URL such as http://127.0.0.1:4318, not {self.otlp_endpoint}")
        if self.is_reachable and not (self.insecure or self.keys or self.tls_client_ca or self._is_local()):
            raise ServeError(
                f"anybody who reaches {self.host} could ask this server: give --keys or --tls-client-ca, or --insecure "
                "if the network is trusted"
            )

    @property
    def tcp_port(self) -> int | None:
        """The port to listen on, or None for a Unix socket alone."""
        if self.port >= 0:
            return self.port
        return None if self.uds else 8080

    @property
    def is_reachable(self) -> bool:
        """Whether anything but a Unix socket is listened on."""
        return self.tcp_port is not None or self.grpc_port >= 0

    def _is_local(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_arguments(arguments: Sequence[str] | None, prog: str) -> tuple[Path, ServeOptions]:
    """The path to serve and the options. Raises `ServeError`, or `SystemExit` for wrong use."""
    parser = argparse.ArgumentParser(prog=prog, description="Serve a policy over HTTP, by the Open Inference Protocol.")
    parser.add_argument("bundle", type=Path, help="a bundle, or a folder of bundles: NAME/ or NAME/VERSION/")
    for option in fields(ServeOptions):
        shown = "" if option.default in (None, False, -1) else " (%(default)s)"
        parser.add_argument(
            _flag(option.name),
            default=option.default,
            help=option.metadata["help"] + shown,
            **{key: value for key, value in option.metadata["arguments"].items() if value is not None},
        )
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    given = vars(parser.parse_args(arguments))
    bundle, _ = given.pop("bundle"), given.pop("debug")
    if given["uds"] is None and given["port"] == -1 and "PORT" in os.environ:
        given["port"] = _port(os.environ["PORT"])
    return bundle, ServeOptions(**given)


def _port(text: str) -> int:
    if not text.isdecimal():
        raise ServeError(f"$PORT must be a number, not {text!r}")
    return int(text)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
