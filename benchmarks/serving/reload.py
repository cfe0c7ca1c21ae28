"""Measure whether requests fail or wait while new versions of a model arrive under full load.

`python -m benchmarks.serving.reload [--seconds 60] [--every 1] [--clients 4] [--workers 1] [--bundle BUNDLE]` serves a
folder of versions, publishes a new one every second and removes the oldest, while clients in processes of their own ask
without pause. It prints how many requests were answered and how many failed, how many versions they saw, and how long
answers took; beside the same without any reload. Exit status 1 if a request failed or a version did not come to act.
"""

import argparse
import multiprocessing
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BUNDLE = Path(__file__).parents[2] / "tests" / "serving" / "bundles" / "discrete"
BODY = b'{"inputs":[{"name":"obs","datatype":"FP32","shape":[1,4],"data":[0.1,-0.2,0.05,0.3]}]}'
REQUEST = b"POST /v2/models/policy/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
ANSWER = re.compile(rb'HTTP/1\.1 200 OK\r\n.*?"model_version":"(\d+)".*\}$', re.DOTALL)
KEPT = 3


class ClientResult(NamedTuple):
    """The answers to one client: seconds of each, failures, and versions in the order in which they came."""

    seconds: np.ndarray
    failures: list[str]
    versions: list[int]


def ask(port: int, begin: Any, is_over: Any, results: Any) -> None:
    """Ask on one connection until it is over; a connection that is lost is a failure, and made anew."""
    seconds, failures, versions = array("d"), [], []
    connection = socket.create_connection(("127.0.0.1", port), 10)
    begin.wait()
    while not is_over.is_set():
        begun = time.perf_counter()
        try:
            connection.sendall(REQUEST)
            answer = connection.recv(65536)
        except OSError as error:
            answer = repr(error).encode()
        seconds.append(time.perf_counter() - begun)
        matched = ANSWER.match(answer)
        if matched is None:
            failures.append(answer.decode(errors="replace")[:200])
            connection.close()
            connection = socket.create_connection(("127.0.0.1", port), 10)
        elif not versions or versions[-1] != int(matched[1]):
            versions.append(int(matched[1]))
    connection.close()
    results.put(ClientResult(np.array(seconds), failures, versions))


def publish(bundle: Path, model: Path, version: int) -> None:
    """Publish a version atomically, and remove the oldest one."""
    aside = model / f".{version}"
    shutil.copytree(bundle, aside)
    aside.rename(model / str(version))
    shutil.rmtree(model / str(version - KEPT), ignore_errors=True)


def wait_until_loaded(port: int, version: int) -> None:
    """Ask for the version until it is ready, half a minute at most; the clients tell whether it came to act."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/policy/versions/{version}/ready").close()
        except urllib.error.HTTPError:
            time.sleep(0.05)
        else:
            return


def measure(given: argparse.Namespace, *, reload: bool) -> tuple[list[ClientResult], int]:
    """Return the results of all clients, and the last version that was published."""
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "policy"
        model.mkdir()
        publish(given.bundle, model, 1)
        command = [sys.executable, "-m", "trpo_tf", "serve", scratch, "--port", "0", "--poll", str(given.every / 4)]
        with subprocess.Popen([*command, "--workers", str(given.workers)], stderr=subprocess.PIPE, text=True) as server:
            announced = re.search(r":(\d+)$", server.stderr.readline())
            if announced is None:
                sys.exit(f"error: the server did not start: {server.stderr.read()}")
            processes = multiprocessing.get_context("spawn")
            begin, is_over, results = processes.Barrier(given.clients + 1), processes.Event(), processes.Queue()
            asking = (int(announced[1]), begin, is_over, results)
            clients = [processes.Process(target=ask, args=asking) for _ in range(given.clients)]
            for client in clients:
                client.start()
            begin.wait()
            begun, version = time.monotonic(), 1
            while (passed := time.monotonic() - begun) < given.seconds:
                if reload and passed >= version * given.every:
                    version += 1
                    publish(given.bundle, model, version)
                time.sleep(0.01)
            wait_until_loaded(int(announced[1]), version)
            time.sleep(given.every)  # for the clients to see it
            is_over.set()
            found = [results.get() for _ in clients]
            for client in clients:
                client.join()
            server.send_signal(signal.SIGTERM)
            if server.wait(30) != 0:
                sys.exit(f"error: the server ended with status {server.returncode}: {server.stderr.read()}")
    return found, version


def main() -> int:
    """Measure without and with reloads, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between new versions (%(default)s)")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    given = parser.parse_args()
    print("| reloads | requests | failed | versions seen | req/s | p50 us | p99 us | p99.9 us | longest ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    is_good = True
    for reload in (False, True):
        results, last = measure(given, reload=reload)
        seconds = np.concatenate([client.seconds for client in results])
        failures = [failure for client in results for failure in client.failures]
        p50, p99, p999 = np.percentile(seconds, (50, 99, 99.9)) * 1e6
        rate = len(seconds) / max(client.seconds.sum() for client in results)
        fewest = min(len(set(client.versions)) for client in results)
        print(
            f"| {last - 1} | {len(seconds)} | {len(failures)} | {fewest} | {rate:.0f} | {p50:.0f} | {p99:.0f} "
            f"| {p999:.0f} | {seconds.max() * 1e3:.1f} |",
            flush=True,
        )
        for failure in failures[:5]:
            print(f"    {failure}", file=sys.stderr)
        is_good &= not failures and all(client.versions[-1] == last for client in results)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
