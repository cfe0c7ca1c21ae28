"""A server that stops under load loses no request that it was sent."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from serving.worker import LEAVE_SECONDS

TRAFFIC = Path(__file__).parents[1] / "container" / "traffic.py"
ASK = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


def test_a_signal_under_load_fails_no_request(start, discrete):
    with start(discrete) as server:
        command = [sys.executable, str(TRAFFIC), str(server.port), "discrete", "--connections", "64"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as clients:
            assert clients.stdout.readline(), "every connection has had an answer"
            assert server.stop(signal.SIGTERM) == (0, "")
            seen = json.loads(clients.communicate(timeout=20)[0])
    assert seen["failures"] == {}
    assert seen["answered"] >= 64


def test_an_idle_connection_is_answered_once_more_and_closed(start, discrete):
    with start(discrete) as server, socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(ASK)
        assert b"connection: close" not in connection.recv(65536)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(LEAVE_SECONDS + 0.4)
        connection.sendall(ASK)
        assert b"connection: close" in connection.recv(65536)
        assert connection.recv(1) == b""
        assert server.process.wait(10) == 0
