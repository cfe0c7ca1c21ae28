"""`--ray local`: nothing leaves the machine, nothing stays however the learner ends, and the run goes on."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.processes.ray_cluster import processes_marked, wait_for
from tests.support.training.rollouts import LEARNER, assert_end_soon
from tests.support.training.traced import LOOPBACK_UP
from trpo_tf.runs.folder import write_config
from trpo_tf.training.train import resume

pytest.importorskip("ray")

MARK = f"TRPO_TF_TESTS_ALONE={os.getpid()}"


def leaves(call: str) -> bool:
    """Whether a call connects to, or sends to, an address that is not this machine's."""
    here = r'"(127\.0\.0\.1|0\.0\.0\.0|::1|::ffff:127\.0\.0\.1|::)"|AF_UNIX|AF_NETLINK|AF_UNSPEC'
    # To learn which of its addresses others would reach, Ray "connects" UDP sockets to name servers: no packet is sent.
    asked = r'sin6?_port=htons\((53|80)\).*"(8\.8\.8\.8|2001:4860:4860::8888)"'
    return "sa_family=" in call and not re.search(here, call) and not (" connect(" in call and re.search(asked, call))


def test_a_run_that_is_stopped_leaves_no_process_and_reaches_nobody(small_config, tmp_path):
    """Ctrl-C in a terminal, which all of Ray's processes get, under strace in a network of its own."""
    config, log, out = small_config(num_envs=4, shards=4, total_steps=64 * 20), tmp_path / "calls", tmp_path / "run"
    write_config(tmp_path, config)
    alone = ["unshare", "--net", sys.executable, "-c", LOOPBACK_UP]
    strace = ["strace", "-DD", "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect,sendto", "-o", str(log)]
    options = ["--workers", "2", "--ray", "local"]
    train = [sys.executable, "-m", "trpo_tf", "train", "--config", tmp_path / "config.toml", "--out", out, *options]
    (tmp_path / "home").mkdir()
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    variables |= dict([MARK.split("=")])
    with subprocess.Popen(
        [*alone, *strace, *map(str, train)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=variables,
        text=True,
        process_group=0,
    ) as learner:
        try:
            wait_for(lambda: learner.poll() is not None or lines(out / "metrics.jsonl") >= 2)
            started = processes_marked(MARK)
            os.killpg(learner.pid, signal.SIGINT)
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


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_learner_that_is_killed_leaves_no_process(sent, tmp_path):
    """Nor does it hand a job's runtime environment on, which only agents could make."""
    code = LEARNER.format(env_id="tests.support.environments:Walk-v0", ray="local")
    job = {"runtime_env": {"env_vars": {"OF": "the job"}}, "metadata": {}}
    variables = {"HOME": str(tmp_path), "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)} | dict([MARK.split("=")])
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ | variables, text=True
    ) as learner:
        try:
            assert learner.stdout.readline() == "ready\n"
            started = processes_marked(MARK)
            learner.send_signal(sent)
            learner.wait()
        finally:
            learner.kill()
    assert len(started) > 5
    assert_end_soon(started)
    assert processes_marked(MARK) == []


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0
