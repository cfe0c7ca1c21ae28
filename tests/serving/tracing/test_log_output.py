"""A log that nobody reads, or that can't be written, stops nothing; what is missing of it is told."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from trpo_tf.serving.support.log_writer import QUEUE_BYTES, LineOutput

LONG = b"x" * 240


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def running(bundle, stderr, *arguments: str, **how):
    """A server whose stderr is this descriptor, and its port."""
    port = free_port()
    command = [sys.executable, "-m", "trpo_tf", "serve", str(bundle), "--port", str(port), "--access-log", *arguments]
    with subprocess.Popen(command, stderr=stderr, **how) as process:
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    ask(port, 1)
                    break
                except OSError:
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            yield process, port
        finally:
            process.kill()


def ask(port: int, times: int) -> None:
    """Ask so many times on one connection, with an answer for each."""
    request = b"GET /v2/health/live?%b HTTP/1.1\r\nHost: a\r\nx-request-id: %b\r\n\r\n" % (LONG, LONG[:128])
    with socket.create_connection(("127.0.0.1", port), 10) as connection, connection.makefile("rb") as answers:
        for _ in range(times):
            connection.sendall(request)
            assert answers.readline().startswith(b"HTTP/1.1 200")
            length = 0
            while (header := answers.readline()) != b"\r\n":
                if header.startswith(b"content-length"):
                    length = int(header.split()[1])
            answers.read(length)


def dropped(port: int) -> int:
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = b"".join(iter(lambda: connection.recv(65536), b""))
    return int(re.search(rb"\ntrpo_tf_log_lines_dropped_total (\d+)\n", text)[1])


def end(process) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(15)


def read_until(descriptor: int, pattern: bytes, seconds: float = 20) -> bytes:
    content, deadline = b"", time.monotonic() + seconds
    while not re.search(pattern, content):
        assert time.monotonic() < deadline, content[-500:]
        if select.select([descriptor], [], [], 0.2)[0]:
            content += os.read(descriptor, 65536)
    return content


# More than the queue and a pipe hold.
MANY = (QUEUE_BYTES + 2**17) // 500


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_a_log_that_nobody_reads_stops_nothing_and_lacks_only_what_it_says(discrete, kind, workers):
    if kind == "pipe":
        reading, writing = os.pipe()
    elif kind == "terminal":
        reading, writing = os.openpty()
    else:
        reading, writing = (end.detach() for end in socket.socketpair())
    with running(discrete, writing, "--workers", workers) as (process, port):
        os.close(writing)
        for _ in range(int(workers) + 1):  # connections, of which each worker gets one at least, or one gets many
            ask(port, MANY)
        missing = dropped(port)
        assert missing > 0
        said = read_until(reading, rb"lines were dropped")
        ask(port, 1)
        said += read_until(reading, rb"request client=127.0.0.1 method=GET")
        process.send_signal(signal.SIGTERM)
        said += read_until(reading, rb"stopped\r?\n")
        assert process.wait(10) == 0
    os.close(reading)
    lines = said.splitlines()
    told = sum(int(line.split()[0]) for line in lines if b"dropped" in line and not line.startswith(b"request"))
    assert told >= missing
    if workers == "1":  # else nobody may have read when the last worker was there
        assert sum(line.startswith(b"serving discrete on ") for line in lines) == 1
    assert all(line.startswith((b"request ", b"serving ", b"stopped")) or b"dropped" in line for line in lines), lines


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_ends_though_nobody_ever_reads(discrete, workers):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    while True:  # so that it is full when the server starts
        try:
            os.write(writing, b"x" * 4096)
        except BlockingIOError:
            break
    os.set_blocking(writing, True)
    with running(discrete, writing, "--workers", workers) as (process, port):
        ask(port, 200)
        assert end(process) == 0
    os.close(reading), os.close(writing)


def test_a_reader_that_leaves_does_not_end_it(discrete):
    reading, writing = os.pipe()
    with running(discrete, writing) as (process, port):
        os.close(writing)
        read_until(reading, b"serving discrete")
        os.close(reading)
        ask(port, 50)
        time.sleep(0.1)
        ask(port, 50)
        assert dropped(port) >= 50
        assert end(process) == 0


def test_a_full_disk_leaves_the_server_alone(discrete):
    with open("/dev/full", "wb") as full, running(discrete, full) as (process, port):
        ask(port, 50)
        time.sleep(0.1)
        assert dropped(port) >= 50
        assert end(process) == 0


def test_a_closed_stderr_is_not_taken_for_a_connection(discrete):
    def close():
        os.close(2)

    with running(discrete, None, preexec_fn=close) as (process, port):
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            ask(port, 20)
            time.sleep(0.1)
            connection.settimeout(0.2)
            with pytest.raises(TimeoutError):
                connection.recv(1)
        assert end(process) == 0


def test_lines_of_a_file_that_may_not_grow_are_cut_between_lines_once_it_may_again(tmp_path):
    """A limit of the file's size stands for a full disk: of a write a part is taken, and then none."""
    code = (
        "import os, resource, trpo_tf.serving.support.log_writer as log\n"
        "counted = []\n"
        "output = log.LineOutput(2, lambda lines: b'%d missing\\n' % lines, counted.append, threaded=True)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (25, resource.RLIM_INFINITY))\n"
        "for number in range(5):\n"
        "    output.put(b'line %04d\\n' % number); output.flush()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        "output.put(b'again\\n'); output.flush()\n"
        "print(sum(counted))\n"
    )
    with open(tmp_path / "log", "wb") as log:
        done = subprocess.run([sys.executable, "-c", code], stderr=log, stdout=subprocess.PIPE, timeout=30, check=True)
    assert done.stdout == b"3\n"
    assert (tmp_path / "log").read_bytes() == b"line 0000\nline 0001\nline \n3 missing\nagain\n"


def test_what_another_process_made_non_blocking_is_waited_for():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    counted = []
    output = LineOutput(writing, lambda lines: b"%d missing\n" % lines, counted.append, threaded=True)
    lines = [b"%06d" % number + b"-" * 93 + b"\n" for number in range(2000)]
    for line in lines:
        output.put(line)
    time.sleep(0.2)
    content = b""
    while len(content) < 100 * len(lines):
        content += os.read(reading, 65536)
    assert content == b"".join(lines)
    assert sum(counted) == 0


def test_warnings_of_python_are_events(start, discrete):
    code = (
        "import sys, warnings, trpo_tf.serving.__main__ as m, trpo_tf.serving.workers.worker as w\n"
        "run = w.Worker.run\n"
        "async def warn(*arguments):\n"
        "    warnings.warn('old')\n"
        "    await run(*arguments)\n"
        "w.Worker.run = warn\n"
        "sys.exit(m.main())"
    )
    with start(discrete, "--log-format", "json", code=code) as server:
        assert '"event": "log"' in server.warnings
        assert "UserWarning: old" in server.warnings
