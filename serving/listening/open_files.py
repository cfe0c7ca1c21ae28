"""The limit of open files: raised to what the options need when the server starts, and watched while it runs."""

import errno
import logging
import os
import resource
from dataclasses import replace

from trpo_tf.serving.errors import ServeError
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.support.logs import emit

OWN_FILES = 96
"""Files of a worker without connections: models that it reads, libraries, pipes, listening sockets."""

HTTP_RESERVE = 96
"""HTTP connections beyond `--max-connections`: those that may only check health, and handshakes."""

LEAST_CONNECTIONS = 8
"""Fewest connections with which the server starts."""

NEARLY = 4
"""Tolerance of the count: files that the server may have closed since it counted its own."""


def occupy_standard_descriptors() -> None:
    """Open /dev/null where stdin, stdout or stderr is closed, so that no connection gets their numbers.

    libuv aborts the process when it closes such a connection.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def raise_file_limit(options: ServeOptions) -> ServeOptions:
    """Raise this process's limit to what the options need, and return the options.

    Where the system doesn't allow that, they are returned with fewer connections. Raises `ServeError` if fewer than
    `LEAST_CONNECTIONS` are left.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = files_of(options.max_connections, options)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return options
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed == needed:
        return options
    fixed = files_of(0, options)
    possible = (allowed - fixed) * options.max_connections // (needed - fixed)
    if possible < LEAST_CONNECTIONS:
        raise ServeError(f"a limit of {hard} open files is too low to serve; raise it to {needed} (ulimit -n)")
    message = (
        f"the limit of {hard} open files allows {possible} connections, not the {options.max_connections} of "
        f"--max-connections; raise it to {needed} (ulimit -n)"
    )
    emit("files", message, level=logging.WARNING, limit=hard, connections=possible)
    return replace(options, max_connections=possible)


def files_of(connections: int, options: ServeOptions) -> int:
    """Return the most files that a process opens when it serves with this `--max-connections`."""
    over_http = HTTP_RESERVE + connections if options.uds is not None or options.tcp_port is not None else 0
    return OWN_FILES + over_http + (2 * connections if options.serves_grpc else 0)


class FileWatch:
    """Logs once when no file can be opened, or all connections of gRPC are taken, and once when that is over.

    gRPC closes further connections itself and reports nothing, so its connections are counted as open files.
    """

    def __init__(self, options: ServeOptions) -> None:
        """Count the process's own files; no client may have connected yet."""
        self._most = 2 * options.max_connections if options.serves_grpc else 0
        self._own = _count_files() if self._most else 0
        self._problem = ""

    def look(self, over_http: int) -> None:
        """Check the files, and log a change; `over_http` is the number of HTTP connections."""
        if (problem := self._find(over_http)) == self._problem:
            return
        self._problem = problem
        emit(
            "files", problem or "there is room for connections again", level=logging.ERROR if problem else logging.INFO
        )

    def _find(self, over_http: int) -> str:
        try:
            over_grpc = _count_files() - self._own - over_http if self._most else 0
            os.close(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                return "no more files can be opened, so new connections are lost; raise the limit (ulimit -n)"
            return ""
        if self._most and over_grpc >= self._most - NEARLY:
            return f"all {self._most} connections of gRPC are taken, and new ones are closed; raise --max-connections"
        return ""


def _count_files() -> int:
    return len(os.listdir("/proc/self/fd"))
