"""Workers that hang are replaced and others are not; the process ends whatever its threads do."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager

import pytest

from tests.support.serving.waiting import wait_for, workers_of

INFER = "/v2/models/discrete/infer"

# Runs code in each worker before it works: the parent must not have imported what a worker does.
IN_WORKERS = """
import sys, trpo_tf.serving.workers.supervisor as s, trpo_tf.serving.__main__ as m
run_worker = s._run_worker
def changed(work, context):
    def prepared(context):
        import trpo_tf.serving.runtime.policy as p
        infer = p.Policy.infer
        def act(self, observations, *rest):
            if len(observations) == 3:
                {hang}
            return infer(self, observations, *rest)
        p.Policy.infer = act
        work(context)
    run_worker(prepared, context)
s._run_worker = changed
sys.exit(m.main())
"""


def request(rows: int) -> dict:
    data = [0.0] * 4 * rows
    return {"inputs": [{"name": "obs", "shape": [rows, 4], "datatype": "FP32", "data": data}]}


@contextmanager
def hanging(how: str, start, discrete):
    """A server of two workers of which one hangs, in one way or another; its process number, and when that began."""
    loop = {"python": "while True: pass", "native": "import ctypes; ctypes.PyDLL(None).sleep(3600)"}.get(how, "pass")
    code = IN_WORKERS.format(hang=loop)
    with start(discrete, "--workers", "2", code=code) as server, closing(server.connect()) as connection:
        if how == "stopped":
            hung = workers_of(server.process)[0]
            os.kill(hung, signal.SIGSTOP)
        else:
            hung = None
            connection.request("POST", INFER, json.dumps(request(3)))
        yield server, hung, time.monotonic()


@pytest.mark.parametrize("how", ["stopped", "python", "native"])
def test_a_worker_that_hangs_is_replaced_within_ten_seconds(start, discrete, how):
    with hanging(how, start, discrete) as (server, hung, since):
        before = set(workers_of(server.process))
        lines = server.follow()
        wait_for(lambda: len(set(workers_of(server.process)) - before) == 1, 10 - (time.monotonic() - since))
        (gone,) = before - set(workers_of(server.process))
        assert hung in (None, gone)
        assert server.request("POST", INFER, request(2))[0] == 200
        wait_for(lambda: len(lines) >= 2, 5)
        assert re.fullmatch(rf"worker [01] \(process {gone}\) does not answer, and is killed\n", lines[0])
        assert "was killed by signal 9; another takes its place" in lines[1]
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0


def test_neither_a_parent_that_was_stopped_nor_full_load_costs_a_worker(start, discrete):
    """Two busy processes on every core; the parent is stopped for longer than a worker may be silent, 2.5 seconds."""
    code = "import sys, trpo_tf.serving.workers.supervisor as s, trpo_tf.serving.__main__ as m\n"
    code += "s.PING_SECONDS = 0.5\nsys.exit(m.main())"
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        with start(discrete, "--workers", "2", code=code) as server:
            before = workers_of(server.process)
            server.process.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            while time.monotonic() - stopped < 4.5:
                assert server.request("POST", INFER, request(4096))[0] == 200
            server.process.send_signal(signal.SIGCONT)
            time.sleep(1.5)
            assert workers_of(server.process) == before
            assert server.stop(signal.SIGTERM) == (0, "")
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_many_models_of_long_names_are_announced_in_a_short_line(discrete, tmp_path, workers):
    count = 100
    for number in range(count):
        (tmp_path / f"{'m' * 215}{number:05d}").symlink_to(discrete)
    command = [
        sys.executable,
        "-m",
        "trpo_tf",
        "serve",
        str(tmp_path),
        "--workers",
        workers,
        "--port",
        "0",
        "--poll",
        "0",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stderr.readline()
            assert line.startswith(f"serving {count} models (mmm")
            assert re.search(r"00002, \.\.\.\) on http://127\.0\.0\.1:\d+$", line)
            assert len(line) < 1000
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


STUCK = """
import sys, os, threading, trpo_tf.serving.repository.repository as r, trpo_tf.serving.__main__ as m
refresh, calls = r.Repository.refresh, []
def look(self, **how):
    calls.append(0)
    if len(calls) > 2:
        threading.Event().wait()
    refresh(self, **how)
r.Repository.refresh = look
{more}
sys.exit(m.main())
"""


@pytest.mark.parametrize("more", ["", "threading.Thread(target=threading.Event().wait).start()"])
def test_one_process_ends_whatever_its_threads_do(start, discrete, more):
    with start(discrete, "--poll", "0.1", "--drain", "1", code=STUCK.format(more=more)) as server:
        time.sleep(0.5)
        began = time.monotonic()
        assert server.stop(signal.SIGTERM) == (0, "")
        assert time.monotonic() - began < 8


@pytest.mark.parametrize("workers", ["1", "2"])
def test_two_signals_end_it_at_once(start, discrete, workers):
    with start(discrete, "--workers", workers, "--drain", "60") as server, closing(server.connect()) as connection:
        connection.putrequest("POST", INFER)
        connection.putheader("Content-Length", "10")
        connection.endheaders(b"{")
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert server.process.poll() is None
        assert server.stop(signal.SIGTERM) == (0, "")


def test_two_signals_end_it_at_once_though_a_worker_hangs(start, discrete):
    with start(discrete, "--workers", "2", "--drain", "60") as server:
        os.kill(workers_of(server.process)[0], signal.SIGSTOP)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert server.stop(signal.SIGTERM) == (0, "")


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_start_ends_it(discrete, workers, number):
    code = (
        "import sys, time, trpo_tf.serving.__main__ as m\n"
        "import trpo_tf.serving.repository.discovery\n"
        "def slow(path):\n"
        "    print('loading', flush=True); time.sleep(60)\n"
        "trpo_tf.serving.repository.discovery.resolve_source = slow\n"
        "sys.exit(m.main())\n"
    )
    command = [sys.executable, "-c", code, str(discrete), "--port", "0", "--workers", workers]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "loading\n"
            for harmless in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                process.send_signal(harmless)
            time.sleep(0.2)
            assert process.poll() is None
            process.send_signal(number)
            assert process.wait(10) == 0
            assert process.stderr.read() == "stopped\n"
        finally:
            process.kill()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_signal_that_nobody_means_ends_it(start, discrete, workers):
    with start(discrete, "--workers", workers) as server:
        everybody = [server.process.pid, *workers_of(server.process)]
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE):
            for pid in everybody:
                os.kill(pid, number)
        time.sleep(0.5)
        assert server.request("POST", INFER, request(1))[0] == 200
        assert [server.process.pid, *workers_of(server.process)] == everybody
        assert server.stop(signal.SIGTERM) == (0, "")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_the_system_refuses_at_the_start_is_one_line(discrete, workers):
    code = (
        "import sys, errno, trpo_tf.serving.__main__ as m, importlib.util\n"
        "class Refused:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'trpo_tf.serving.workers.worker':\n"
        "            raise PermissionError(errno.EACCES, 'Permission denied', '/models')\n"
        "sys.meta_path.insert(0, Refused())\n"
        "sys.exit(m.main())\n"
    )
    command = [sys.executable, "-c", code, str(discrete), "--port", "0", "--workers", workers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: Permission denied: '/models'; choose another path, or change its permissions\n"


FORKS = """
import errno, os, sys, trpo_tf.serving.workers.supervisor, trpo_tf.serving.__main__ as m
fork, calls = os.fork, []
def limited():
    calls.append(0)
    if len(calls) in {refused}:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()
os.fork = limited
sys.exit(m.main())
"""


def test_a_worker_that_cannot_be_started_again_at_once_is_later(start, discrete):
    with start(discrete, "--workers", "2", code=FORKS.format(refused=(3, 4))) as server:
        killed, kept = workers_of(server.process)
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: len(workers_of(server.process)) == 2 and killed not in workers_of(server.process), 20)
        assert kept in workers_of(server.process)
        status, said = server.stop(signal.SIGTERM)
    assert status == 0
    assert said.count("can't be started, and is tried again: no process can be started") == 2


def test_a_start_without_a_process_or_a_thread_is_one_line(discrete):
    threadless = (
        "import sys, threading, trpo_tf.serving.__main__ as m\n"
        "def start(self):\n"
        '    raise RuntimeError("can\'t start new thread")\n'
        "threading.Thread.start = start\n"
        "sys.exit(m.main())\n"
    )
    for code, workers in ((threadless, "1"), (FORKS.format(refused=(1,)), "2")):
        command = [sys.executable, "-c", code, str(discrete), "--port", "0", "--workers", workers]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 2
        assert re.fullmatch(r"error: .*; raise the limit of processes \(ulimit -u\).*\n", done.stderr)
