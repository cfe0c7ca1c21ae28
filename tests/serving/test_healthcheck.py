"""The container's health check finds out by itself how the server is to be asked."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from trpo_tf import serving
from trpo_tf.serving.healthcheck import server_arguments

CHECK = Path(serving.__file__).parent / "healthcheck.py"


def check(*arguments: object, **environment: str) -> tuple[int, str]:
    """Its exit status and what it says."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PORT")}
    command = [sys.executable, str(CHECK), *map(str, arguments)]
    done = subprocess.run(
        command, env=kept | environment, cwd="/", capture_output=True, text=True, timeout=20, check=False
    )
    assert done.stdout == ""
    assert done.stderr.count("\n") == done.returncode  # a line if it is not ready, never a traceback
    return done.returncode, done.stderr


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def running(bundle: Path, folder: Path, *arguments: str, **environment: str):
    """A server that has said where it listens."""
    command = [sys.executable, "-m", "trpo_tf", "serve", str(bundle), *arguments]
    env = os.environ | {"PYTHONPATH": str(CHECK.parents[2])} | environment
    with subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stderr.readline()
            assert line.startswith("serving "), line
            yield process
        finally:
            process.kill()


def tls(certificates: Path, *names: str) -> list[str]:
    files = {"cert": "server.pem", "key": "server.key", "client-ca": "ca.pem"}
    return [f"--tls-{name}={certificates / files[name]}" for name in names]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_ready_server_is_healthy_however_it_listens(discrete, tmp_path, certificates, workers):
    """All are stopped and asked together, since each check waits for seconds."""
    kinds = {
        "plain": ["--port"],
        "IPv6": ["--host=::1", "--port"],
        "any": ["--host=::", "--insecure", "--port"],
        "TLS": [*tls(certificates, "cert", "key"), "--port"],
        "client certificates": [*tls(certificates, "cert", "key", "client-ca"), "--port"],
        "Unix socket": ["--uds"],
        "socket and TLS": [*tls(certificates, "cert", "key"), "--uds"],
    }
    if workers == "2":  # these listen in the parent; the kinds differ in what the check reads of the options
        kinds = {kind: kinds[kind] for kind in ("any", "client certificates", "socket and TLS")}
    with ExitStack() as servers, ThreadPoolExecutor(len(kinds)) as pool:
        processes = []
        for number, arguments in enumerate(kinds.values()):
            where = f"socket{number}" if arguments[-1] == "--uds" else free_port()
            server = running(discrete, tmp_path, *arguments, str(where), "--workers", workers)
            processes.append(servers.enter_context(server))
        said = dict(zip(kinds, [check("--pid", process.pid) for process in processes], strict=True))
        assert said == dict.fromkeys(kinds, (0, ""))
        if workers == "1":
            for process in processes:
                process.send_signal(signal.SIGSTOP)
            answers = list(pool.map(lambda process: check("--pid", process.pid), processes))
            said = {kind: (status, text[:11]) for kind, (status, text) in zip(kinds, answers, strict=True)}
            assert said == dict.fromkeys(kinds, (1, "not ready: "))


@pytest.mark.parametrize("names", [("cert", "key"), ("cert", "key", "client-ca")])
def test_a_port_alone_is_asked_over_tls_if_need_be(discrete, tmp_path, certificates, names):
    port = free_port()
    with running(discrete, tmp_path, "--port", str(port), *tls(certificates, *names)) as process:
        assert check(port) == (0, "")
        process.send_signal(signal.SIGSTOP)
        assert check(port)[0] == 1


def test_options_from_the_environment_and_a_file_count(discrete, tmp_path):
    first, second = free_port(), free_port()
    (tmp_path / "serving.toml").write_text(f"port = {first}\n")
    with running(discrete, tmp_path, TRPO_TF_CONFIG="serving.toml") as process:
        assert check("--pid", process.pid) == (0, "")
    with running(discrete, tmp_path, TRPO_TF_PORT=str(second), PORT="1") as process:
        assert check("--pid", process.pid) == (0, "")
    with running(discrete, tmp_path, PORT=str(first)) as process:
        assert check("--pid", process.pid) == (0, "")
        assert check(first) == check(PORT=str(first)) == (0, "")


def test_a_server_that_is_not_ready_is_not_healthy(tmp_path):
    (tmp_path / "models").mkdir()
    with running(tmp_path / "models", tmp_path, "--port", str(free_port())) as process:
        assert check("--pid", process.pid) == (1, "not ready: it answers HTTP/1.1 503 Service Unavailable\n")


def test_no_server_is_not_healthy():
    assert check("--pid", os.getpid()) == (1, f"not ready: process {os.getpid()} is not the server\n")
    assert check(free_port())[0] == 1


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 503 Service Unavailable\r\n\r\n", b"hello\r\n", b"HTTP/1.1 200"])
def test_only_a_200_is_readiness(answer):
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as pool:
        outcome = pool.submit(check, listener.getsockname()[1])
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(answer)
        assert outcome.result()[0] == (answer != b"HTTP/1.1 200")


def test_a_server_is_known_by_its_command():
    assert server_arguments(["python", "-m", "trpo_tf", "serve", "/models", "--port", "1"]) == [
        "/models",
        "--port",
        "1",
    ]
    assert server_arguments(["/sbin/docker-init", "--", "python", "-m", "trpo_tf", "serve", "/models"]) == ["/models"]
    assert server_arguments(["/bin/python", "/bin/trpo-tf", "serve", "bundle"]) == ["bundle"]
    assert server_arguments(["python", "-m", "trpo_tf.serving.keys", "robot"]) is None
    assert server_arguments(["python", "/app/trpo_tf/serving/healthcheck.py"]) is None


def test_it_is_cheap():
    """It runs every ten seconds beside a server that may have a tenth of a core."""
    began = time.process_time(), os.times().children_user + os.times().children_system
    for _ in range(3):
        check("--pid", os.getpid())
    used = (os.times().children_user + os.times().children_system - began[1]) / 3
    assert used < 0.5
    code = (
        f"import sys; sys.path[0] = {str(CHECK.parents[2])!r}; import trpo_tf.serving.command_line; print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "onnxruntime", "uvloop", "asyncio", "ssl", "tomllib"} & set(loaded)


@pytest.mark.parametrize("arguments", [["http"], ["--pid"], ["--pid", "x"], ["--help"], ["8080", "8081"], ["-1"]])
def test_what_is_no_number_is_one_line(arguments):
    status, said = check(*arguments)
    assert status == 1
    assert said.endswith(" is no number; give a PORT, or --pid PID\n")


def test_a_port_of_the_environment_that_is_no_number_is_one_line():
    assert check(PORT="http") == (1, "not ready: http is no number; give a PORT, or --pid PID\n")
