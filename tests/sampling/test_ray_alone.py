"""`trpo-tf train --ray local` by the command line: nothing leaves the machine, nothing stays, and the run goes on."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.ray_cluster import processes_marked, wait_for
from tests.support.traced import LOOPBACK_UP
from trpo_tf.runs.folder import write_config
from trpo_tf.training.train import resume

pytest.importorskip("ray")

TRAIN = """
import sys, pytest
from tests.support.ray_cluster import start_when_busy
start_when_busy(pytest.MonkeyPatch())
from trpo_tf.cli.main import main
main(sys.argv[1:])
"""
MARK = f"TRPO_TF_TESTS_ALONE={os.getpid()}"


def leaves(call: str) -> bool:
    """Whether a call connects to, or sends to, an address that is not this machine's."""
    here = r'"(127\.0\.0\.1|0\.0\.0\.0|::1|::ffff:127\.0\.0\.1|::)"|AF_UNIX|AF_NETLINK|AF_UNSPEC'
    # To learn which of its addresses others would reach, Ray "connects" UDP sockets to name servers: no packet is sent.
    asked = r'sin6?_port=htons\((53|80)\).*"(8\.8\.8\.8|2001:4860:4860::8888)"'
    return "sa_family=" in call and not re.search(here, call) and not (" connect(" in call and re.search(asked, call))


def test_a_run_that_is_stopped_leaves_no_process_and_reaches_nobody(small_config, tmp_path):
    """It runs under strace, in a network namespace that has a loopback device alone."""
    config, log, out = small_config(num_envs=4, shards=4, total_steps=64 * 20), tmp_path / "calls", tmp_path / "run"
    write_config(tmp_path, config)
    alone = ["unshare", "--net", sys.executable, "-c", LOOPBACK_UP]
    strace = ["strace", "-D", "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect,sendto", "-o", str(log)]
    options = ["train", "--config", tmp_path / "config.toml", "--out", out, "--workers", "2", "--ray", "local"]
    (tmp_path / "home").mkdir()
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*alone, *strace, sys.executable, "-c", TRAIN, *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=variables | dict([MARK.split("=")]),
        text=True,
    ) as learner:
        try:
            wait_for(lambda: learner.poll() is not None or lines(out / "metrics.jsonl") >= 2)
            started = processes_marked(MARK)
            learner.send_signal(signal.SIGTERM)
            said, _ = learner.communicate(timeout=900)
        finally:
            learner.kill()
    assert learner.returncode == 130, said
    assert "--resume" in said
    assert len(started) > 5  # learner, two actors, and what Ray runs
    wait_for(lambda: not processes_marked(MARK))
    calls = log.read_text().splitlines()
    assert sum("127.0.0.1" in call for call in calls) > 10, "strace saw nothing"
    assert [call for call in calls if leaves(call)] == []
    stopped_at = lines(out / "metrics.jsonl")
    run = resume(out, progress=False)
    assert stopped_at < lines(out / "metrics.jsonl")
    assert config.total_steps - 64 < run.state.steps <= config.total_steps


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0
