"""The limit of open files: what the server does about it at its start, and when they are used up."""

import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress

import pytest

from trpo_tf.serving.listening.open_files import files_of
from trpo_tf.serving.options import ServeOptions

LIMITED = """
import resource, sys, trpo_tf.serving.__main__
resource.setrlimit(resource.RLIMIT_NOFILE, ({}, {}))
sys.exit(trpo_tf.serving.__main__.main(sys.argv[1:]))
"""


def limit_of(server):
    return resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)


def test_the_limit_is_raised_to_what_the_options_need(start, discrete):
    with start(discrete, "--max-connections", "700", code=LIMITED.format(128, 4096)) as server:
        assert limit_of(server) == (files_of(700, ServeOptions()), 4096)
        assert server.warnings == ""


def test_a_limit_that_is_high_enough_is_left(start, discrete):
    with start(discrete, "--max-connections", "10", code=LIMITED.format(1024, 1024)) as server:
        assert limit_of(server) == (1024, 1024)


@pytest.mark.parametrize("over_grpc", [False, True])
def test_where_files_are_few_fewer_connections_are_taken(start, discrete, over_grpc):
    options = ServeOptions(grpc_port=0 if over_grpc else -1)
    if over_grpc:
        pytest.importorskip("grpc")
    limit = files_of(32, options)
    grpc_port = ("--grpc-port", "0") if over_grpc else ()
    with start(discrete, *grpc_port, code=LIMITED.format(64, limit)) as server:
        allowed = "allows 32 connections, not the 512 of --max-connections"
        assert server.warnings == (
            f"the limit of {limit} open files {allowed}; raise it to {files_of(512, options)} (ulimit -n)\n"
        )
        assert server.request("GET", "/v2")[0] == 200


def test_too_few_files_to_serve_are_one_line(discrete):
    command = [sys.executable, "-c", LIMITED.format(64, 64), str(discrete), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: a limit of 64 open files is too low to serve; raise it to ")


def test_files_that_are_used_up_are_said_once_and_soon_forgotten(start, discrete):
    with start(discrete) as server, ExitStack() as stack:
        assert server.request("GET", "/v2")[0] == 200
        before = limit_of(server)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (30, before[1]))
        for _ in range(60):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
        assert server.process.stderr.readline().startswith("no more files can be opened, so new connections are lost")
        time.sleep(1.2)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, before)
        assert server.request("GET", "/v2")[0] == 200
        assert server.process.stderr.readline() == "there is room for connections again\n"
        assert server.stop(signal.SIGTERM) == (0, "")


def test_silent_grpc_connections_leave_room_for_http(start, discrete):
    grpc = pytest.importorskip("grpc")
    from trpo_tf.serving.codecs.grpc_messages import SERVER_LIVE

    limit = files_of(40, ServeOptions(grpc_port=0))
    options = ("--grpc-port", "0", "--max-connections", "40", "--timeout", "2")
    with start(discrete, *options, code=LIMITED.format(limit, limit)) as server, ExitStack() as stack:
        for _ in range(400):
            with suppress(OSError):
                stack.enter_context(socket.create_connection(("127.0.0.1", server.grpc_port), 10))
        assert server.process.stderr.readline().startswith(
            "all 80 connections of gRPC are taken, and new ones are closed"
        )
        for _ in range(20):
            assert server.request("GET", "/v2/health/ready")[0] == 200
        # Each has to speak HTTP/2 within --timeout, which these don't.
        assert server.process.stderr.readline() == "there is room for connections again\n"
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            channel.unary_unary(SERVER_LIVE.path)(b"", timeout=10, wait_for_ready=True)
        assert server.stop(signal.SIGTERM) == (0, "")
