"""The processes that answer: they end without losing a request, replace one that is killed, and each has its share."""

import http.client
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.serving.asking import BODY, UnixConnection, clients, failures
from tests.support.serving.waiting import wait_for, workers_of

WORKERS = pytest.mark.parametrize("workers", ["1", "2"])


def on_socket(models: Path, folder: Path, *arguments: str):
    command = [sys.executable, "-m", "trpo_tf", "serve", str(models), "--uds", "socket", *arguments]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)


@WORKERS
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_fails_no_request(start, models, workers, number):
    with start(models, "--workers", workers) as server:
        with clients(server.connect, count=8) as asking:
            server.process.send_signal(number)
            for client in asking:
                client.join(20)
        assert server.process.wait(20) == 0
        assert server.process.stderr.read() == "stopped\n"
    assert failures(asking) == []


@WORKERS
def test_a_signal_under_load_fails_no_request_on_a_unix_socket(models, tmp_path, workers):
    with on_socket(models, tmp_path, "--workers", workers) as process:
        path = str(tmp_path / "socket")
        assert process.stderr.readline().startswith("serving walk on unix:")
        with clients(lambda: UnixConnection(path, timeout=10), count=8) as asking:
            process.send_signal(signal.SIGTERM)
            for client in asking:
                client.join(20)
        assert (process.wait(20), process.stderr.read()) == (0, "stopped\n")
    assert failures(asking) == []
    assert not (tmp_path / "socket").exists()


def test_readiness_ends_first(start, models):
    with start(models) as server:
        connection = server.connect()
        connection.request("GET", "/v2/health/ready")
        assert connection.getresponse().read() == b'{"ready":true}'
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: server.request("GET", "/v2/health/ready")[0] == 503)
        assert server.request("POST", "/v2/models/walk/infer", BODY)[0] == 200
        connection.request("GET", "/v2/models/walk/ready")
        assert connection.getresponse().status == 503
        connection.close()
        assert server.process.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_every_process_is_the_same_as_one_to_the_parent(models, tmp_path, number):
    """As a service manager and a terminal send it; a request under way is finished."""
    command = [sys.executable, "-m", "trpo_tf", "serve", str(models), "--port", "0", "--workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        port = int(re.search(r":(\d+)$", process.stderr.readline())[1])
        with clients(lambda: http.client.HTTPConnection("127.0.0.1", port, timeout=10), count=8) as asking:
            os.killpg(process.pid, number)
            for client in asking:
                client.join(20)
        assert (process.wait(20), process.stderr.read()) == (0, "stopped\n")
    assert failures(asking) == []


def test_a_killed_worker_costs_its_own_connections_and_no_more(start, models):
    with start(models, "--workers", "2") as server:
        parent = server.process
        assert len(workers_of(parent)) == 2
        assert "onnxruntime" not in Path(f"/proc/{parent.pid}/maps").read_text()
        assert len(list(Path(f"/proc/{parent.pid}/task").iterdir())) == 1
        with clients(server.connect, count=8) as asking:
            first, second = before = workers_of(parent)
            os.kill(first, signal.SIGKILL)
            replaced = wait_for(lambda: set(workers_of(parent)) - set(before))
            assert second in workers_of(parent)
            lost = len(failures(asking))
            assert lost <= 8
            for client in asking:
                asked = len(client.versions)
                wait_for(lambda client=client, asked=asked: len(client.versions) > asked + 20)
            assert len(failures(asking)) == lost, "who was connected to the other, or came later, lost nothing"
        assert all(isinstance(failure, OSError | http.client.HTTPException) for failure in failures(asking))
        assert (
            f"process {first}) was killed by signal 9 (perhaps memory ran out); another takes its place"
            in parent.stderr.readline()
        )
        assert len(replaced) == 1
        assert server.stop(signal.SIGTERM) == (0, "")


@pytest.mark.parametrize("on_unix", [False, True], ids=["tcp", "unix"])
def test_every_worker_answers(start, models, tmp_path, on_unix):
    """Each worker is reached: with one stopped, the other goes on with what it was asked."""
    if on_unix:
        with on_socket(models, tmp_path, "--workers", "2") as process:
            assert process.stderr.readline().startswith("serving walk on unix:")
            connections = [UnixConnection(str(tmp_path / "socket"), timeout=10) for _ in range(64)]
            answered = sockets_of(process, connections)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    else:
        with start(models, "--workers", "2") as server:
            answered = sockets_of(server.process, [server.connect() for _ in range(64)])
    assert sum(answered) == 64
    assert min(answered) > 0


def sockets_of(process: subprocess.Popen, connections: list[http.client.HTTPConnection]) -> list[int]:
    """How many more sockets each worker has open with these connections than before."""

    def count() -> list[int]:
        return [
            sum(os.readlink(entry).startswith("socket:") for entry in Path(f"/proc/{worker}/fd").iterdir())
            for worker in workers_of(process)
        ]

    before = count()
    for connection in connections:
        connection.request("POST", "/v2/models/walk/infer", BODY)
    for connection in connections:
        assert connection.getresponse().status == 200
    after = count()
    for connection in connections:
        connection.close()
    return [now - then for now, then in zip(after, before, strict=True)]


def test_workers_end_with_their_parent(start, models):
    with start(models, "--workers", "2") as server:
        workers = workers_of(server.process)
        server.process.kill()
        wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
