"""Ask the server on this machine whether it is ready: exit status 0 if so, else 1. For a container's HEALTHCHECK.

Run it by its path, `python serving/healthcheck.py [PORT]`, so that nothing else of the package is loaded; by
default the port is $PORT, or 8080. A socket is all it needs: `import http` would find this folder's.
"""

import os
import socket
import sys

_REQUEST = b"GET /v2/health/ready HTTP/1.0\r\n\r\n"
_TIMEOUT = 3.0


def is_ready(port: int, host: str = "127.0.0.1") -> bool:
    """Whether the server answers its readiness route with 200 in time."""
    try:
        with socket.create_connection((host, port), _TIMEOUT) as connection:
            connection.sendall(_REQUEST)
            return connection.makefile("rb").readline().split()[1:2] == [b"200"]
    except OSError:
        return False


if __name__ == "__main__":
    arguments = [*sys.argv[1:], os.environ.get("PORT", "8080")]
    sys.exit(0 if is_ready(int(arguments[0])) else 1)
