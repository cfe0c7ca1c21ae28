"""Measure the server's speed over HTTP and gRPC, against its floor, bare ASGI, FastAPI, MLServer and KServe.

`python -m benchmarks.serving.speed [--baseline CHECKOUT] [--fastapi PYTHON] [--mlserver PYTHON] [--kserve PYTHON]
[--seconds 5] [--rounds 3] [--only NAME ...]` prints a table. It writes results/serve_speed.json unless `--only` chooses
among the servers. CHECKOUT is another version of this repository, whose server is measured as `before`. Each PYTHON is
the interpreter of an environment that has the peer (`make bench-serve` makes them). One server at a time runs on core
0, and the load on core 1. They take turns, every other round backwards. Each figure is the median of the rounds, and
each ratio that of the rounds' ratios. Ours has all its checks and limits on. Requests a second are worth something on
an idle machine alone; processor time and ratios are less disturbed.
"""

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc

from benchmarks.serving.grpc_load import request_of as grpc_request_of
from trpo_tf.serving.codecs.grpc_messages import MODEL_INFER

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEERS = HERE / "peers"
BUNDLE = ROOT / "tests" / "serving" / "bundles" / "discrete"
RESULTS = HERE.parent / "results" / "serve_speed.json"
TENSOR = {"name": "obs", "datatype": "FP32", "shape": [1, 4], "data": [0.1, -0.2, 0.05, 0.3]}
START_SECONDS = 60.0
PORT = 8765
GRPC_PORT = PORT + 1


@dataclass(frozen=True)
class Contender:
    """The command that starts a server, and how it is asked: JSON, an observation's bytes at a Unix socket, or gRPC.

    `code` is the checkout that it takes its modules from.
    """

    name: str
    command: tuple[str, ...]
    model: str = "policy"
    folder: Path = PEERS
    uds: str | None = None
    grpc: int | None = None
    code: Path = ROOT

    @property
    def connections(self) -> tuple[int, ...]:
        """Numbers of connections to measure."""
        return (8,) if self.uds else (1, 8) if self.grpc else (1, 8, 64)


def contenders(given: argparse.Namespace, scratch: Path) -> list[Contender]:
    """List our server, the floor, and the peers whose interpreters are given."""
    port, bundle, floor = str(PORT), str(BUNDLE), str(HERE / "floor.py")
    socket_path = str(scratch / "socket")
    serve, raw_floor = (sys.executable, "-m", "trpo_tf", "serve", bundle), ("--uds", socket_path, "--raw")
    over_grpc = (*serve, "--port", port, "--grpc-port", str(GRPC_PORT))
    ours = [
        Contender("ours", (*serve, "--port", port), "discrete"),
        Contender("ours, raw", (*serve, "--uds", socket_path), "discrete", uds=socket_path),
        Contender("ours, gRPC", over_grpc, "discrete", grpc=GRPC_PORT),
    ]
    found = []
    for contender in ours:
        found.append(contender)
        if given.baseline:
            name = contender.name.replace("ours", "before")
            found.append(replace(contender, name=name, code=given.baseline, command=as_in(given.baseline, contender)))
    found.append(Contender("floor", (sys.executable, floor, bundle, "--port", port)))
    found.append(Contender("floor, raw", (sys.executable, floor, bundle, *raw_floor), uds=socket_path))
    if given.fastapi:
        uvicorn = (given.fastapi, "-m", "uvicorn", "--port", port, "--log-level", "warning", "--no-access-log")
        granian = (given.fastapi, "-m", "granian", "--port", port, "--log-level", "warning", "--interface", "asgi")
        found.append(Contender("ASGI, uvicorn", (*uvicorn, "asgi_server:app")))
        found.append(Contender("ASGI, Granian", (*granian, "asgi_server:app")))
        found.append(Contender("FastAPI", (*uvicorn, "fastapi_server:app")))
    if given.mlserver:
        settings = {"http_port": PORT, "grpc_port": GRPC_PORT, "metrics_port": PORT + 2, "parallel_workers": 0}
        (scratch / "settings.json").write_text(json.dumps({**settings, "debug": False}))
        (scratch / "model-settings.json").write_text(
            json.dumps({"name": "policy", "implementation": "mlserver_runtime.Policy"})
        )
        program = str(Path(given.mlserver).parent / "mlserver")
        found.append(Contender("MLServer", (program, "start", str(scratch))))
        found.append(Contender("MLServer, gRPC", (program, "start", str(scratch)), grpc=GRPC_PORT))
    if given.kserve:
        command = (given.kserve, "kserve_server.py", "--http_port", port, "--grpc_port", str(GRPC_PORT))
        found.append(Contender("KServe", (*command, "--enable_grpc", "false")))
        found.append(Contender("KServe, gRPC", (*command, "--enable_grpc", "true"), grpc=GRPC_PORT))
    return found


def as_in(checkout: Path, contender: Contender) -> tuple[str, ...]:
    """Return the command in another version. Before it was part of `trpo_tf`, the server was `python -m serving`."""
    python, *_, bundle = contender.command[:5]
    start = ("trpo_tf", "serve") if (checkout / "trpo_tf" / "serving").exists() else ("serving",)
    return (python, "-m", *start, bundle, *contender.command[5:])


@contextmanager
def served(contender: Contender) -> Iterator[tuple[int, float]]:
    """Run a server; provide its process id, and the seconds until its first answer."""
    environment = {**os.environ, "BUNDLE": str(BUNDLE), "PYTHONPATH": f"{contender.code}:{PEERS}"}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ORT_DISABLE_TELEMETRY"), "1")
    started = time.monotonic()
    command = ["taskset", "--cpu-list", "0", *contender.command]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=contender.folder, env=environment, start_new_session=True, **quiet) as process:
        try:
            while not is_answering(contender):
                if process.poll() is not None or time.monotonic() - started > START_SECONDS:
                    raise SystemExit(f"error: {contender.name} does not start: {' '.join(contender.command)}")
                time.sleep(0.005)
            yield process.pid, time.monotonic() - started
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def request_of(contender: Contender) -> bytes:
    """Return the request to repeat: JSON, or the raw bytes."""
    if contender.uds:
        body, more = bytes(16), "Inference-Header-Content-Length: 0\r\n"
    else:
        body, more = json.dumps({"inputs": [TENSOR]}).encode(), "Content-Type: application/json\r\n"
    head = f"POST /v2/models/{contender.model}/infer HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def is_answering(contender: Contender) -> bool:
    """Return whether the server answers an inference request."""
    if contender.grpc:
        with grpc.insecure_channel(f"127.0.0.1:{contender.grpc}") as channel:
            try:
                channel.unary_unary(MODEL_INFER.path)(grpc_request_of(contender.model), timeout=5)
                return True
            except grpc.RpcError:
                return False
    family = socket.AF_UNIX if contender.uds else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        try:
            connection.connect(contender.uds or ("127.0.0.1", PORT))
            connection.sendall(request_of(contender))
            return b" 200 OK" in connection.recv(4096)
        except OSError:
            return False


def load(contender: Contender, connections: int, seconds: float) -> dict[str, float]:
    """Return requests per second and latency in microseconds, by wrk, or by unix_load.py or grpc_load.py."""
    if contender.grpc:
        asked = (str(contender.grpc), contender.model, str(connections), str(seconds))
        command = ["taskset", "--cpu-list", "1", sys.executable, str(HERE / "grpc_load.py"), *asked]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    if contender.uds:
        command = [sys.executable, str(HERE / "unix_load.py"), contender.uds, str(connections), str(seconds)]
        done = subprocess.run(
            ["taskset", "--cpu-list", "1", *command], input=request_of(contender), capture_output=True, check=True
        )
        return json.loads(done.stdout)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(
            f"wrk.method = 'POST'\nwrk.headers['Content-Type'] = 'application/json'\n"
            f"wrk.body = '{json.dumps({'inputs': [TENSOR]})}'\n"
            "done = function(summary, latency)\n  io.write(string.format('%d %d %d %d %d',\n"
            "  summary.requests, summary.duration, summary.errors.status, latency:percentile(50),"
            " latency:percentile(99)))\nend\n"
        )
        script.flush()
        url = f"http://127.0.0.1:{PORT}/v2/models/{contender.model}/infer"
        wrk = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds:.0f}s"]
        command = ["taskset", "--cpu-list", "1", *wrk, "--script", script.name, url]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    counted, microseconds, errors, p50, p99 = map(int, done.stdout.splitlines()[-1].split())
    if errors:
        raise SystemExit(f"error: {contender.name} answered {errors} requests with an error")
    return {"requests_per_second": counted / microseconds * 1e6, "p50_us": p50, "p99_us": p99}


def processes_of(session: int) -> list[Path]:
    """Return the folders in /proc of a server's processes: Granian's worker is not the process that was started."""
    folders = [Path(f"/proc/{name}") for name in os.listdir("/proc") if name.isdecimal()]
    return [folder for folder in folders if fields_of(folder)[3:4] == [str(session)]]


def fields_of(folder: Path) -> list[str]:
    """Return the fields of a process's `stat` after its name; none if it has ended."""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def cpu_seconds(session: int) -> float:
    """Return the processor time that a server has used: unlike requests a second, it hardly depends on neighbours."""
    used = [fields_of(folder)[11:13] for folder in processes_of(session)]
    return sum(int(ticks) for times in used for ticks in times) / os.sysconf("SC_CLK_TCK")


def resident_megabytes(session: int) -> float:
    """Return the resident memory of a server's processes together."""
    statuses = [(folder / "status").read_text() for folder in processes_of(session)]
    sizes = [re.search(r"VmRSS:\s+(\d+)", status) for status in statuses]
    return sum(int(size[1]) for size in sizes if size) * 1024 / 1e6


Rounds = dict[str, list[dict[str, Any]]]
"""What was measured, by contender and round."""


def measure(found: list[Contender], seconds: float, rounds: int) -> Rounds:
    """Measure all in turns; `KEY at COUNT` is of so many connections."""
    seen: Rounds = {contender.name: [] for contender in found}
    for number in range(rounds):
        for contender in found[:: -1 if number % 2 else 1]:
            with served(contender) as (pid, first_answer):
                row: dict[str, Any] = {"first_answer_seconds": first_answer}
                for connections in contender.connections:
                    load(contender, connections, 1)
                    before = cpu_seconds(pid)
                    figures = load(contender, connections, seconds)
                    requests = figures["requests_per_second"] * seconds
                    figures["cpu_us_per_request"] = (cpu_seconds(pid) - before) / requests * 1e6
                    row |= {f"{key} at {connections}": value for key, value in figures.items()}
                row["resident_megabytes"] = resident_megabytes(pid)
            seen[contender.name].append(row)
            print(f"{contender.name}: {row}", file=sys.stderr, flush=True)
    return seen


RATIOS = {"requests_per_second": "ours is", "cpu_us_per_request": "ours takes"}
"""Of ours to another's, in the same round."""


def medians(seen: Rounds) -> dict[str, dict[str, float]]:
    """Return medians over rounds, also of ratios: `ours is at COUNT` in requests/s, `ours takes at COUNT` in CPU."""
    results = {}
    for name, rows in seen.items():
        own = f"ours, {name.partition(', ')[2]}"  # what is served over gRPC, say, is compared with ours over gRPC
        pairs = list(zip(seen.get(own, seen["ours"]), rows, strict=True))
        results[name] = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for key in rows[0]:
            measured, _, connections = key.partition(" at ")
            if measured in RATIOS:
                ratio = statistics.median(ours[key] / row[key] for ours, row in pairs)
                results[name][f"{RATIOS[measured]} at {connections}"] = ratio
    return results


def table(results: dict[str, Any]) -> str:
    """Format the results as a Markdown table."""
    lines = [
        "| | req/s at 1, 8, 64; raw at 8, gRPC at 1, 8 | ours is x of it | CPU us each at 8 | ours takes x of it "
        "| p99 us at 1; raw at 8 | MB | first answer s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        cells = (
            name,
            " ".join(f"{value:,.0f}" for key, value in row.items() if key.startswith("requests_per_second")),
            " ".join(f"{value:.2f}" for key, value in row.items() if key.startswith("ours is")),
            f"{row['cpu_us_per_request at 8']:.0f}",
            " ".join(f"{value:.2f}" for key, value in row.items() if key.startswith("ours takes")),
            f"{row.get('p99_us at 1', row['p99_us at 8']):.0f}",
            f"{row['resident_megabytes']:.0f}",
            f"{row['first_answer_seconds']:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def checkout(path: str) -> Path:
    """Return the folder of another version of the server. Raises `ArgumentTypeError` if there is none."""
    folder = Path(path).resolve()
    if not (folder / "serving" / "__main__.py").exists():
        raise argparse.ArgumentTypeError(f"{path} is no checkout of this repository")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--baseline", metavar="CHECKOUT", type=checkout, help="another version, to compare ours with")
    for peer in ("fastapi", "mlserver", "kserve"):
        # Not resolved: the link's own folder is what makes it an environment's interpreter.
        parser.add_argument(f"--{peer}", metavar="PYTHON", type=lambda path: str(Path(path).absolute()))
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these alone, beside ours")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = contenders(given, Path(scratch))
        if given.only:
            found = [contender for contender in found if contender.name in ("ours", *given.only)]
        results = medians(measure(found, given.seconds, given.rounds))
    if not given.only:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))
