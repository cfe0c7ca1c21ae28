"""A server that stops under load loses no request that it was sent."""

import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from tests.support.paths import ROOT
from tests.support.serving.waiting import wait_for
from trpo_tf.serving.workers.worker import LEAVE_SECONDS

TRAFFIC = ROOT / "tests" / "container" / "traffic.py"
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


BUSY_AT_THE_STOP = """
import sys, time
from pathlib import Path
import trpo_tf.serving.__main__
import trpo_tf.serving.workers.worker as worker

def busy(listener):
    Path("busy").touch()
    while not Path("go").exists():
        time.sleep(0.01)

worker.refuse_new = busy
worker.ACCEPT_TURNS, worker.REQUEST_SECONDS = 0, 10.0
trpo_tf.serving.__main__.main(sys.argv[1:])
"""
"""Does not look at its listener from shortly before it closes it, as when the event loop has much else to do."""


@pytest.mark.parametrize("has_tls", [False, True])
def test_connections_that_wait_when_the_listener_closes_are_answered(start, discrete, tmp_path, certificates, has_tls):
    files = ("--tls-cert", str(certificates / "server.pem"), "--tls-key", str(certificates / "server.key"))
    with start(discrete, *(files if has_tls else ()), code=BUSY_AT_THE_STOP) as server, ExitStack() as clients:
        server.process.send_signal(signal.SIGTERM)
        wait_for((tmp_path / "busy").exists)
        connections = [
            clients.enter_context(socket.create_connection(("127.0.0.1", server.port), 10)) for _ in range(40)
        ]
        (tmp_path / "go").touch()
        if has_tls:
            trusting = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
            connections = [trusting.wrap_socket(each, server_hostname="127.0.0.1") for each in connections]
        for connection in connections:
            connection.sendall(ASK)
        assert [connection.recv(12) for connection in connections] == [b"HTTP/1.1 200"] * 40
        for connection in connections:
            connection.close()
        assert server.process.wait(10) == 0


SIGNALLED = """
import os, signal, sys
import trpo_tf.serving.__main__

class Finalizer:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            Finalizer()

sys.meta_path.insert(0, Finder())
if sys.argv[1] == "load":
    import trpo_tf.serving.repository.repository
    real = trpo_tf.serving.repository.repository.load_model
    trpo_tf.serving.repository.repository.load_model = lambda *arguments: (Finalizer(), real(*arguments))[1]
sys.exit(trpo_tf.serving.__main__.main(sys.argv[2:]))
"""
"""Sends itself SIGTERM where Python swallows what the handler raises, as in the import of many a native module."""


@pytest.mark.parametrize(
    ("moment", "workers"),
    [(moment, 1) for moment in ("trpo_tf.serving.command_line", "trpo_tf.serving.keys", "numpy", "onnxruntime", "load")]
    + [("trpo_tf.serving.workers.serve", 2), ("trpo_tf.serving.keys", 2)],
)
def test_a_signal_while_it_starts_is_not_lost(discrete, tmp_path, moment, workers):
    made = subprocess.run([sys.executable, "-m", "trpo_tf.serving.keys", "robot"], capture_output=True, check=True)
    (tmp_path / "keys").write_bytes(made.stdout)
    command = [sys.executable, "-c", SIGNALLED, moment, str(discrete), "--port=0", f"--workers={workers}"]
    done = subprocess.run(
        [*command, f"--keys={tmp_path / 'keys'}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr.partition("Exception ignored")[0]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_closed_standard_descriptors_are_no_connections(discrete, tmp_path, workers):
    """libuv ends the process with SIGABRT when it is to close a connection which has their numbers."""
    path = tmp_path / "socket"
    shell = 'exec "$@" <&- >&- 2>&-'
    command = ["sh", "-c", shell, "sh", sys.executable, "-m", "trpo_tf", "serve", str(discrete), "--uds", str(path)]
    with subprocess.Popen([*command, f"--workers={workers}", "--access-log"]) as process:
        try:
            for _ in range(5):
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.settimeout(20)
                    wait_for(lambda: connection.connect_ex(str(path)) == 0)
                    connection.sendall(ASK)
                    assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_an_error_without_stderr_is_a_status():
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-m", "trpo_tf", "serve", "/nowhere"]
    assert subprocess.run(command, check=False, timeout=60).returncode == 2


@pytest.mark.parametrize("arguments", [[], ["--workers=2"]])
def test_a_start_without_memory_is_one_line(discrete, arguments):
    shell = 'ulimit -v 100000; exec "$@"'
    command = [
        "bash",
        "-c",
        shell,
        "bash",
        sys.executable,
        "-m",
        "trpo_tf",
        "serve",
        str(discrete),
        "--port=0",
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"error: can't start \(.+\); give the process more memory .*\n", done.stderr)
