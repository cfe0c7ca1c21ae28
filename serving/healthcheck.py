"""Ask the server on this machine whether it is ready, for HEALTHCHECK: exit status 0, or 1 and the reason.

`python serving/healthcheck.py` finds the server among the processes, and what it listens on by its command line and its
environment, as the server itself has read them. `--pid PID` says which process it is; a PORT alone asks that port of
127.0.0.1, without TLS. It imports nothing of the server but what reads options, since it runs every few seconds.
"""

import itertools
import os
import socket
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.options import ServeOptions

_REQUEST = b"GET /v2/health/ready HTTP/1.0\r\nHost: localhost\r\n\r\n"
_TIMEOUT = 3.0
_LOCAL = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class NotReady(Exception):
    """The reason why the server is taken for not ready."""


def check(connection: socket.socket) -> None:
    """Raise `NotReady` unless the server answers its readiness route with 200."""
    connection.sendall(_REQUEST)
    line = connection.makefile("rb").readline()
    if line.split()[1:2] != [b"200"]:
        raise NotReady(f"it answers {line.decode('ascii', 'replace').strip() or 'nothing'}")


def check_server(options: "ServeOptions") -> None:
    """Raise `NotReady` or `OSError` unless a server with these options is ready.

    Where clients need a certificate the check has none: there the server is ready if it answers the TLS handshake.
    """
    with _connect(options) as connection:
        if not options.tls_cert:
            check(connection)
            return
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # it is this machine
        context.verify_mode = ssl.CERT_NONE
        with context.wrap_socket(connection) as encrypted:
            if not options.tls_client_ca:
                check(encrypted)


def _connect(options: "ServeOptions") -> socket.socket:
    if options.tcp_port is None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_TIMEOUT)
        connection.connect(str(options.uds))
        return connection
    host = options.host.strip("[]")
    return socket.create_connection((_LOCAL.get(host, host), options.tcp_port), _TIMEOUT)


def options_of(pid: int) -> "ServeOptions":
    """The options of a server that runs. Raises `OSError`, or `NotReady` if the process is none."""
    from serving.command_line import make_options, make_parser

    arguments = server_arguments(_strings(pid, "cmdline"))
    if arguments is None:
        raise NotReady(f"process {pid} is not the server")
    environment = dict(variable.split("=", 1) for variable in _strings(pid, "environ") if "=" in variable)
    os.chdir(f"/proc/{pid}/cwd")  # where its relative paths begin
    return make_options(vars(make_parser("serving").parse_args(arguments)), environment)


def find_server() -> int | None:
    """The first process that is a server: process 1, unless something else has started it."""
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        try:
            if server_arguments(_strings(pid, "cmdline")) is not None and os.access(f"/proc/{pid}/environ", os.R_OK):
                return pid
        except OSError:
            continue  # it has just ended
    return None


def server_arguments(command: list[str]) -> list[str] | None:
    """What follows `python -m serving` or `trpo-tf serve` in a command; None if it is another one."""
    for index, (first, second) in enumerate(itertools.pairwise(command)):
        if (first, second) == ("-m", "serving") or (os.path.basename(first), second) == ("trpo-tf", "serve"):
            return command[index + 2 :]
    return None


def _strings(pid: int, file: str) -> list[str]:
    with open(f"/proc/{pid}/{file}", "rb") as content:
        return [os.fsdecode(part) for part in content.read().split(b"\0")[:-1]]


def main(arguments: list[str]) -> int:
    """Check, and tell on stderr what is wrong."""
    try:
        pid = int(arguments[1]) if arguments[:1] == ["--pid"] else None
        if pid is None and not arguments:
            pid = find_server()
        if pid is not None:
            check_server(options_of(pid))
        else:
            port = int(arguments[0] if arguments else os.environ.get("PORT") or "8080")
            with socket.create_connection(("127.0.0.1", port), _TIMEOUT) as connection:
                check(connection)
    except (OSError, NotReady) as error:
        sys.stderr.write(f"not ready: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    # Run by its path, this folder is where Python looks for modules first: `import http` would find the server's.
    folder = os.path.dirname(os.path.abspath(__file__))
    if os.path.abspath(sys.path[0]) == folder:
        sys.path[0] = os.path.dirname(folder)
    sys.exit(main(sys.argv[1:]))
