"""Nothing phones home, and nothing is written: every system call of the server and of the library, looked at.

They run under strace in a network namespace of their own, which has a loopback device and no route.
"""

import os
import re
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.training.traced import LOOPBACK_UP

ASK_AND_STOP = """
import http.client, json, os, re, signal, subprocess, sys
server = subprocess.Popen(sys.argv[1:], stderr=subprocess.PIPE, text=True)
line = server.stderr.readline()
assert line.startswith("serving"), line + server.stderr.read()
connection = http.client.HTTPConnection("127.0.0.1", int(re.search(r":(\\d+)$", line)[1]), timeout=30)
body = json.dumps({"inputs": [{"name": "obs", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}]})
for method, path, sent in 50 * [("POST", "/v2/models/discrete/infer", body), ("GET", "/v2/health/ready", None)]:
    connection.request(method, path, sent)
    with connection.getresponse() as response:
        assert response.status == 200, response.read()
        response.read()
connection.close()
(python,) = open(f"/proc/{server.pid}/task/{server.pid}/children").read().split()  # strace's child
os.kill(int(python), signal.SIGTERM)
assert server.wait(30) == 0
"""

ACT = """
import sys, time
from trpo_tf import serving
policy = serving.load(sys.argv[1])
for _ in range(100):
    policy.act([0.1, 0.2, 0.3, 0.4])
time.sleep(1)
"""

CHATTY = "import onnxruntime, sys; onnxruntime.InferenceSession(sys.argv[1] + '/policy.onnx')"
"""ONNX Runtime as it comes, with its telemetry on."""

LOOK_UP = """
import socket
try:
    socket.getaddrinfo("trpo-tf.invalid", 80)
except socket.gaierror:
    pass
"""

WRITES = re.compile(r"\bO_(?:WRONLY|RDWR|CREAT|TRUNC|APPEND)\b")
CHANGES = ("mkdir", "rename", "unlink", "rmdir", "link", "symlink", "chmod", "chown", "truncate", "mknod", "creat")
ASKS_WHO = ("/etc/resolv.conf", "/etc/hosts", "/etc/machine-id", "/var/lib/dbus/machine-id", "/var/run/nscd")


@pytest.fixture
def traced(tmp_path):
    """Runs a program with an empty home folder, and returns those of its system calls that leave it, by strace."""
    home, log = tmp_path / "home", tmp_path / "calls"
    home.mkdir()

    def run(*program: str, before: tuple[str, ...] = ()) -> list[str]:
        strace = ["strace", "-f", "-qq", "-s", "200", "-e", "trace=network,file,ioctl", "-o", str(log)]
        alone = ["unshare", "--net", sys.executable, "-c", LOOPBACK_UP]
        environment = {
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        done = subprocess.run(
            [*alone, *before, *strace, sys.executable, *program],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        calls = log.read_text().splitlines()
        assert len(calls) > 100, "strace saw nothing"
        return [call for call in calls if leaves(call)] + [f"left {path}" for path in home.rglob("*")]

    return run


def leaves(line: str) -> bool:
    """Whether a call reaches a stranger, asks who or where this machine is, or changes a file."""
    call = re.match(r"\d+ +(\w+)\((.*)", line)
    if not call:
        return False
    name, arguments = call.groups()
    if name in ("connect", "sendto", "sendmsg", "sendmmsg"):
        return "sa_family=" in arguments
    if name == "socket":
        return not arguments.startswith(("AF_INET, SOCK_STREAM", "AF_UNIX, SOCK_STREAM"))
    if name == "bind":
        return 'inet_addr("127.0.0.1")' not in arguments
    if name in ("open", "openat"):
        path = re.search(r'"([^"]*)"', arguments)
        return bool(path) and (
            path[1].startswith(ASKS_WHO) or (bool(WRITES.search(arguments)) and path[1] != "/dev/null")
        )
    return name.startswith(CHANGES)


def test_the_library_keeps_to_itself(traced, discrete):
    assert traced("-c", ACT, str(discrete)) == []


def test_the_server_keeps_to_itself(traced, discrete):
    driver = (sys.executable, "-c", ASK_AND_STOP)
    assert traced("-m", "trpo_tf", "serve", str(discrete), "--port", "0", before=driver) == []


def test_files_are_noticed(traced, discrete):
    found = "\n".join(traced("-c", CHATTY, str(discrete)))
    assert "mkdir(" in found
    assert "left " in found


def test_a_look_up_is_noticed(traced):
    found = "\n".join(traced("-c", LOOK_UP))
    assert "/etc/resolv.conf" in found
    assert "AF_INET, SOCK_DGRAM" in found
