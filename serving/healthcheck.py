"""Ask the server on this machine whether it is ready, for HEALTHCHECK: exit status 0, or 1 and the reason.

`python trpo_tf/serving/healthcheck.py` finds the server among the processes. It learns the address from the server's
command line and environment, which it reads as the server does. `--pid PID` names the process. A PORT means that port
of 127.0.0.1, asked over TLS if necessary. Since it runs often, it imports of the server only the modules that read
options.
"""

import itertools
import os
import socket
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trpo_tf.serving.options import ServeOptions

_REQUEST = b"GET /v2/health/ready HTTP/1.0\r\nHost: localhost\r\n\r\n"
_TIMEOUT = 3.0
_LOCAL = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class NotReady(Exception):
    """The server is not ready; the message says why."""


class NotHttp(NotReady):
    """The server answers, but not in HTTP: it may expect TLS."""


class BadRequest(NotReady):
    """The server answers 400, as a port that speaks HTTPS does to HTTP."""


def check(connection: socket.socket) -> None:
    """Raise `NotReady` unless the server answers its readiness route with 200."""
    connection.sendall(_REQUEST)
    line = connection.makefile("rb").readline()
    if not line.startswith(b"HTTP/"):
        raise NotHttp("it does not answer in HTTP")
    status = line.split()[1:2]
    if status != [b"200"]:
        error = BadRequest if status == [b"400"] else NotReady
        raise error(f"it answers {line.decode('ascii', 'replace').strip()}")


def check_server(options: "ServeOptions") -> None:
    """Raise `NotReady` or `OSError` unless a server with these options is ready.

    If clients need a certificate, the server counts as ready when the TLS handshake succeeds: the check has none.
    """
    with _connect(options) as connection:
        if options.tls_cert:
            check_over_tls(connection, needs_certificate=bool(options.tls_client_ca))
        else:
            check(connection)


def check_port(port: int) -> None:
    """Raise `NotReady` or `OSError` unless a server at this port of 127.0.0.1 is ready."""
    try:
        with socket.create_connection(("127.0.0.1", port), _TIMEOUT) as connection:
            check(connection)
    except (BadRequest, NotHttp, ConnectionError):
        with socket.create_connection(("127.0.0.1", port), _TIMEOUT) as connection:
            check_over_tls(connection, needs_certificate=None)


def check_over_tls(connection: socket.socket, *, needs_certificate: bool | None) -> None:
    """Check over TLS as `check` does. A handshake is enough if clients need a certificate, which the check lacks.

    `needs_certificate` None means unknown: then a connection that fails after the handshake counts as ready too.
    """
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the server is on this machine
    context.verify_mode = ssl.CERT_NONE
    with context.wrap_socket(connection) as encrypted:
        if needs_certificate:
            return
        try:
            check(encrypted)
        except (NotHttp, ssl.SSLError, ConnectionError):
            if needs_certificate is False:
                raise


def _connect(options: "ServeOptions") -> socket.socket:
    if options.tcp_port is None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_TIMEOUT)
        connection.connect(str(options.uds))
        return connection
    host = options.host.strip("[]")
    return socket.create_connection((_LOCAL.get(host, host), options.tcp_port), _TIMEOUT)


def options_of(pid: int) -> "ServeOptions":
    """Return the options of a running server. Raises `OSError`, or `NotReady` if the process is not a server."""
    from trpo_tf.serving.command_line import make_options, make_parser

    arguments = server_arguments(_strings(pid, "cmdline"))
    if arguments is None:
        raise NotReady(f"process {pid} is not the server")
    environment = dict(variable.split("=", 1) for variable in _strings(pid, "environ") if "=" in variable)
    os.chdir(f"/proc/{pid}/cwd")  # its relative paths start there
    return make_options(vars(make_parser("trpo-tf serve").parse_args(arguments)), environment)


def find_server() -> "ServeOptions | None":
    """Return the options of the server that listens on $PORT, or else of the only server; None if there is neither."""
    found = [options_of(pid) for pid in _servers()]
    port = os.environ.get("PORT", "")
    return next((options for options in found if str(options.tcp_port) == port), found[0] if len(found) == 1 else None)


def _servers() -> list[int]:
    """Return the ids of the processes that are servers. Workers, whose parent has the same command, are left out."""
    found: list[int] = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        try:
            if server_arguments(_strings(pid, "cmdline")) is not None and os.access(f"/proc/{pid}/environ", os.R_OK):
                with open(f"/proc/{pid}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
                if parent not in found:
                    found.append(pid)
        except OSError:
            continue  # the process has just ended
    return found


def server_arguments(command: list[str]) -> list[str] | None:
    """Return the arguments after `trpo-tf serve` or `python -m trpo_tf serve`; None for another command."""
    for index, (first, second) in enumerate(itertools.pairwise(command)):
        if os.path.basename(first) in ("trpo-tf", "trpo_tf") and second == "serve":
            return command[index + 2 :]
    return None


def _strings(pid: int, file: str) -> list[str]:
    with open(f"/proc/{pid}/{file}", "rb") as content:
        return [os.fsdecode(part) for part in content.read().split(b"\0")[:-1]]


def _number(*texts: str) -> int:
    """Return the number, if exactly one is given. Raises `NotReady`."""
    if len(texts) != 1 or not texts[0].isdecimal():
        raise NotReady(f"{' '.join(texts) or 'nothing'} is no number; give a PORT, or --pid PID")
    return int(texts[0])


def main(arguments: list[str]) -> int:
    """Run the check and return the exit status. A failure is explained on stderr."""
    try:
        if arguments[:1] == ["--pid"]:
            check_server(options_of(_number(*arguments[1:])))
        elif arguments:
            check_port(_number(*arguments))
        else:
            port = _number(os.environ.get("PORT") or "8080")
            options = find_server()
            check_port(port) if options is None else check_server(options)
    except (OSError, NotReady) as error:
        sys.stderr.write(f"not ready: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    # If run by its path, Python searches this folder first: its modules would shadow those of the standard library.
    folder = os.path.dirname(os.path.abspath(__file__))
    if os.path.realpath(sys.path[0]) == os.path.realpath(folder):
        above = os.path.dirname(folder)  # `trpo_tf`, or in a checkout the folder that has it
        sys.path[0] = os.path.dirname(above) if os.path.basename(above) == "trpo_tf" else above
    sys.exit(main(sys.argv[1:]))
