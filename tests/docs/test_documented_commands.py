"""Every command line of README and docs, in the order of its page: run here, or listed with the reason why not."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from trpo_tf.cli import main as cli

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FROM_NOTHING = [ROOT / "README.md", ROOT / "docs" / "tutorial" / "first-policy.md"]
PROGRAMS = r"trpo-tf|python|make|pip|docker|kubectl|openssl|tensorboard"

SHORTER = {
    "train": ["--total-steps", "2048", "--eval-episodes", "1", "--eval-interval", "0"],
    "evaluate": ["--episodes", "1"],
    "export": ["--episodes", "2", "--accept-loss"],
    "record": ["--max-seconds", "0.5"],
    "lab": ["--iterations", "2"],
}
"""Behind a command's own options: fewer steps and episodes, and a policy that has hardly learnt may lose return."""

ELSEWHERE = {
    r"trpo-tf train CartPole-v1( --algo \S+| --sampler vine --total-steps 300000)?$": "tests/config runs it",
    r"trpo-tf train (gymnasium_\w+|shimmy|minigrid|highway_env|mo_gymnasium|metaworld|pursuit|PyFlyt\S+|myosuite):": (
        "needs packages that may be absent; tests/envs/test_environments_of_others.py makes them where they are there"
    ),
    r"trpo-tf train games:": "needs the package Jumanji or MinAtar",
    r"trpo-tf train .* --ray auto$": "needs a cluster; tests/sampling/test_ray.py has one",
    r"trpo-tf benchmark ": "takes hours; tests/benchmark runs the command with small suites",
    r"trpo-tf search ": "takes minutes; tests/search runs the command with two trials",
    r"trpo-tf bench-latency BUNDLE \[": "shows options in brackets; tests/evaluation/test_bench_latency.py runs it",
    r"trpo-tf serve (?!bundle)|TRPO_TF_\S+ .*trpo-tf serve": "tests/serving starts servers with these options",
    r"python -m trpo_tf\.serving\.keys ": "appends to a file; tests/serving/test_keys.py runs it",
    r"python -m pytest ": "is the tests themselves",
    r"(nice -n -8 )?python -m benchmarks\.": "takes minutes to hours",
    r"python examples/": "tests/docs/test_examples.py runs it",
    r"pip install ": "changes the environment that the tests run in; CI installs the extras",
    r"make ": "takes minutes to hours, and needs other programs; CI has make demo and make test",
    r"docker |BUNDLE=.* docker |kubectl ": "needs a container engine or a cluster; tests/container and tests/deploy do",
    r"tensorboard ": "is another project's server",
}


def commands_of(page: Path) -> list[str]:
    """Indented lines that a reader would type, whole, without comments."""
    line = rf"^    ((?:[A-Z_]+=\S+ )*(?:{PROGRAMS})\b(?:[^\n]*\\\n)*[^\n]*)$"
    found = [text.replace("\\\n", " ") for text in re.findall(line, page.read_text(), re.MULTILINE)]
    return [re.split(r"\s{2,}#|\s{9,}(?=[a-z])", text)[0].strip() for text in found]


def is_elsewhere(command: str) -> bool:
    return any(re.match(pattern, command) for pattern in ELSEWHERE)


HERE = [page for page in PAGES if not all(map(is_elsewhere, commands_of(page)))]


@pytest.fixture
def folder(small_config, tmp_path, monkeypatch, request):
    """An empty folder; for pages that do not begin with training, one that holds a run of CartPole-v1."""
    monkeypatch.chdir(tmp_path)
    if request.node.callspec.params["page"] not in FROM_NOTHING:
        shutil.copytree(request.getfixturevalue("cart"), tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="module")
def cart(small_config, tmp_path_factory):
    from trpo_tf.training.train import train

    folder = tmp_path_factory.mktemp("cart")
    train(small_config("CartPole-v1", eval_episodes=2), folder / "runs" / "cartpole", progress=False)
    return folder


@pytest.mark.parametrize("page", HERE, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run_in_its_order(page, folder):
    for name, code in re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", page.read_text(), re.DOTALL):
        (folder / name).write_text(code)
    for command in commands_of(page):
        if is_elsewhere(command):
            continue
        words = ["runs/cartpole" if word == "RUN" else word for word in shlex.split(command)]
        if words[:2] == ["trpo-tf", "export"]:
            shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)  # each page begins with its own
        if words[0] != "trpo-tf":
            subprocess.run(words, check=True, capture_output=True, timeout=60)
        elif words[1] == "serve":
            serve(words[2:])
        else:
            cli.main([*words[1:], *SHORTER.get(words[1], [])])


def serve(arguments: list[str]) -> None:
    """Start the server on a free port, wait until it is ready, stop it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "trpo_tf", "serve", *arguments, "--port", port],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=10) as answer:
                    assert answer.status == 200
                break
            except OSError:
                time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_commands_that_do_not_run_here_are_there():
    """A reason outlives its command otherwise."""
    every = [command for page in PAGES for command in commands_of(page)]
    assert [pattern for pattern in ELSEWHERE if not any(re.match(pattern, command) for command in every)] == []
    assert sum(not is_elsewhere(command) for command in every) > 20
