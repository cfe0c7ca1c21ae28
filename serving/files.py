"""The limit of open files: raised to what the options need when the server starts, and watched while it runs."""

import errno
import logging
import os
import resource
from dataclasses import replace

from serving.errors import ServeError
from serving.events import emit
from serving.options import ServeOptions

OWN_FILES = 96
"""Files of a worker without any connection: models that are read, libraries, pipes, its sockets that listen."""

HTTP_RESERVE = 96
"""HTTP connections beyond `--max-connections`: those that may only ask for health, and handshakes."""

LEAST_CONNECTIONS = 8


def raise_file_limit(options: ServeOptions) -> ServeOptions:
    """Raise this process's limit to what the options need; where the system doesn't allow it, take fewer connections.

    Raises `ServeError` if not even a few would be left.
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
    """Most files that a process has open which serves with this `--max-connections`."""
    over_http = HTTP_RESERVE + connections if options.uds is not None or options.tcp_port is not None else 0
    return OWN_FILES + over_http + (2 * connections if options.grpc_port >= 0 else 0)


class FileWatch:
    """Tells once when no file can be opened any more, and when it can again."""

    def __init__(self) -> None:
        self._is_short = False

    def look(self) -> None:
        """Try to open one."""
        try:
            os.close(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE) and not self._is_short:
                self._is_short = True
                message = "no more files can be opened, so new connections are lost; raise the limit (ulimit -n)"
                emit("files", message, level=logging.ERROR)
        else:
            if self._is_short:
                emit("files", "files can be opened again")
            self._is_short = False
