"""`GET /metrics` as Prometheus reads it, beside the requests that were really sent."""

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from tests.support.paths import ROOT
from trpo_tf import serving
from trpo_tf.serving.metrics.prometheus import FAMILIES, render
from trpo_tf.serving.metrics.series import BUCKETS, KINDS, Metrics
from trpo_tf.serving.metrics.shared_counters import SharedCounters
from trpo_tf.serving.repository.catalog import Catalog, Model, Release
from trpo_tf.serving.rest.request_reader import MAX_HEAD

PAGE = (ROOT / "docs" / "reference" / "serve" / "server-metrics.md").read_text()
INFER = "/v2/models/discrete/infer"
OBSERVATION = {"name": "obs", "shape": [1, 4], "datatype": "FP32", "data": [0.1, -0.2, 0.05, 0.3]}
REQUEST = {"inputs": [OBSERVATION]}
ROW = np.zeros((1, 4), np.float32).tobytes()
RAW = {"Inference-Header-Content-Length": "0"}
fork = get_context("fork")


def raw(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(request)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        return received


def ask_raw(server, body: bytes) -> int:
    connection = server.connect()
    connection.request("POST", INFER, body, RAW)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def total(metrics, name: str, **labels: str) -> float:
    return sum(
        value for (found, pairs), value in metrics.samples.items() if found == name and pairs >= set(labels.items())
    )


def ask_for_every_answer(server) -> None:
    for _ in range(5):
        assert server.request("POST", INFER, REQUEST)[0] == 200
    for _ in range(3):
        assert ask_raw(server, ROW) == 200
    for _ in range(4):
        assert server.request("POST", "/v1/models/discrete:predict", {"instances": [[0, 0, 0, 0]] * 2})[0] == 200
    for _ in range(2):
        assert server.request("POST", INFER, {"inputs": []})[0] == 400
    assert ask_raw(server, ROW[:-1]) == 400
    assert server.request("POST", INFER, b"{}", {"Content-Encoding": "br"})[0] == 415
    assert server.request("POST", "/v2/models/other/infer", REQUEST)[0] == 404
    assert server.request("GET", INFER)[0] == 405
    assert server.request("GET", "/v2/health/live")[0] == 200
    assert (
        raw(server.port, b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n" % INFER.encode())[9:12]
        == b"413"
    )
    assert (
        raw(server.port, b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{" % INFER.encode())[9:12] == b"408"
    )
    assert raw(server.port, b"GET / HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (b"x" * MAX_HEAD))[9:12] == b"431"
    assert raw(server.port, b"nonsense\r\n\r\n")[9:12] == b"400"


def test_every_request_is_counted_once_by_its_model_and_answer(start, discrete, scrape):
    with start(discrete, "--max-body", "5000", "--timeout", "0.5") as server:
        ask_for_every_answer(server)
        metrics = scrape(server)
        requests = {
            (labels["model"], labels["version"], labels["protocol"], labels["code"]): value
            for (name, pairs), value in metrics.samples.items()
            if name == "trpo_tf_requests_total" and (labels := dict(pairs))
        }
        discrete_1, none = ("discrete", "1", "http"), ("", "", "http")
        assert requests == {
            (*discrete_1, "200"): 12,
            (*discrete_1, "400"): 3,
            (*discrete_1, "415"): 1,
            (*none, "200"): 1,
            (*none, "400"): 1,
            (*none, "404"): 1,
            (*none, "405"): 1,
            (*none, "408"): 1,
            (*none, "413"): 1,
            (*none, "431"): 1,
        }
        errors = {
            (labels["model"], labels["kind"]): value
            for (name, pairs), value in metrics.samples.items()
            if name == "trpo_tf_errors_total" and (labels := dict(pairs))
        }
        assert errors == {
            ("discrete", "bad_request"): 3,
            ("discrete", "unsupported_encoding"): 1,
            ("", "bad_request"): 1,
            ("", "not_found"): 1,
            ("", "method_not_allowed"): 1,
            ("", "timeout"): 1,
            ("", "too_large"): 2,
        }
        assert metrics("trpo_tf_request_seconds_count", model="discrete", protocol="http") == 16
        assert metrics("trpo_tf_drift_observations", model="discrete", version="1") == 16
        # A scrape counts once it is answered, so the next one shows it.
        assert scrape(server)("trpo_tf_requests_total", model="", version="", protocol="http", code="200") == 2


def test_histogram_is_cumulative_and_agrees_with_its_count_and_sum(start, discrete, scrape):
    with start(discrete) as server:
        for _ in range(200):
            server.request("POST", INFER, REQUEST)
        metrics = scrape(server)
        labels = {"model": "discrete", "protocol": "http"}
        counts = [metrics("trpo_tf_request_seconds_bucket", **labels, le=f"{bound:g}") for bound in BUCKETS]
        counts.append(metrics("trpo_tf_request_seconds_bucket", **labels, le="+Inf"))
        assert counts == sorted(counts)
        assert counts[-1] == metrics("trpo_tf_request_seconds_count", **labels) == 200
        each = np.diff([0, *counts])
        least, most = (each * [0, *BUCKETS]).sum(), (each[:-1] * BUCKETS).sum() + each[-1] * 60
        assert least <= metrics("trpo_tf_request_seconds_sum", **labels) <= most


def test_buckets_reach_from_5_us_to_1_s():
    assert (BUCKETS[0], BUCKETS[-1]) == (5e-6, 1.0)
    assert list(BUCKETS) == sorted(set(BUCKETS))
    assert max(b / a for a, b in itertools.pairwise(BUCKETS)) < 1.7


def test_a_latency_at_a_bound_is_in_its_bucket(discrete):
    metrics = Metrics()
    series = metrics.series(model(discrete), "grpc")
    series.answered("OK", BUCKETS[3])
    series.answered("OK", 100.0)
    text = render(metrics).decode()
    assert f'le="{BUCKETS[2]:g}"}} 0\n' in text
    assert f'le="{BUCKETS[3]:g}"}} 1\n' in text
    assert 'le="1"} 1\n' in text
    assert 'le="+Inf"} 2\n' in text


def test_an_action_that_is_not_finite_and_a_fault_have_kinds_of_their_own(start, discrete, scrape):
    code = (
        "import sys, trpo_tf.serving.runtime.policy as p, trpo_tf.serving.verify as v, trpo_tf.serving.__main__ as m\n"
        "infer, v._ONE_BY_ONE = p.Policy.infer, 0\n"
        "def fail(self, observations, *rest):\n"
        "    if len(observations) > 1:\n"  # the golden cases
        "        return infer(self, observations, *rest)\n"
        "    raise FloatingPointError('not finite') if observations[0, 0] == 1 else OSError('broken')\n"
        "p.Policy.infer = fail\n"
        "sys.exit(m.main())"
    )
    with start(discrete, code=code) as server:
        for first in (1.0, 0.0, 0.0):
            assert ask_raw(server, np.array([first, 0, 0, 0], np.float32).tobytes()) == 500
        metrics = scrape(server)
        assert metrics("trpo_tf_errors_total", model="discrete", kind="not_finite") == 1
        assert metrics("trpo_tf_errors_total", model="discrete", kind="internal") == 2
        assert metrics("trpo_tf_requests_total", model="discrete", version="1", protocol="http", code="500") == 3


def test_it_is_behind_the_key(start, discrete, tmp_path, scrape):
    made = subprocess.run(
        [sys.executable, "-m", "trpo_tf.serving.keys", "prometheus"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    keys = tmp_path / "keys"
    keys.write_text(made.stdout)
    with start(discrete, "--keys", str(keys)) as server:
        assert server.request("GET", "/metrics")[0] == 401
        metrics = scrape(server, {"Authorization": f"Bearer {made.stderr.strip()}"})
        assert metrics("trpo_tf_errors_total", model="", kind="unauthorized") == 1


def test_gauges_tell_what_is_under_way(start, discrete, scrape):
    with start(discrete) as server:
        idle, half = (socket.create_connection(("127.0.0.1", server.port), 5) for _ in range(2))
        with idle, half:
            half.sendall(b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{" % INFER.encode())
            deadline = time.monotonic() + 10
            # The third connection and the second request are the scrape's own.
            while (now := scrape(server))("trpo_tf_connections") != 3 or now("trpo_tf_requests_in_flight") != 2:
                assert time.monotonic() < deadline, now.text
        while scrape(server)("trpo_tf_connections") != 1:
            assert time.monotonic() < deadline


def test_the_process_is_described(start, discrete, scrape):
    before = time.time()
    with start(discrete) as server:
        metrics, process = scrape(server), Path(f"/proc/{server.process.pid}")
        assert before - 0.1 <= metrics("process_start_time_seconds") <= time.time()
        resident = 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", (process / "status").read_text())[1])
        assert metrics("process_resident_memory_bytes") == pytest.approx(resident, rel=0.2)
        ticks = sum(map(int, (process / "stat").read_text().rpartition(")")[2].split()[11:13]))
        assert 0 < metrics("process_cpu_seconds_total") <= ticks / os.sysconf("SC_CLK_TCK") + 0.1


def test_the_model_is_described(server, scrape, discrete):
    sha256 = json.loads((discrete / "manifest.json").read_text())["files"]["policy.onnx"]["sha256"]
    metrics = scrape(server)
    assert metrics("trpo_tf_model_info", model="discrete", version="1", sha256=sha256) == 1
    assert metrics("trpo_tf_model_ready", model="discrete") == 1


def model(folder: Path, name: str = "discrete", version: str = "1") -> Model:
    return Model(name, version, serving.load(folder))


def catalog(*models: Model) -> Catalog:
    return Catalog({made.name: Release({made.version: made}, *[lambda made=made: made] * 2) for made in models})


def test_counts_of_a_version_outlive_it_and_its_observations_do_not(discrete, scrape):
    metrics, first, second = Metrics(), model(discrete), model(discrete, version="2")
    for served in (first, second):
        metrics.show(catalog(served))
        metrics.series(served).answered(200, 1e-5)
        metrics.watch(served).asked(np.zeros((1, 4), np.float32))
    text = render(metrics).decode()
    for version in "12":
        assert f'trpo_tf_requests_total{{model="discrete",version="{version}",protocol="http",code="200"}} 1\n' in text
    assert 'trpo_tf_drift_observations{model="discrete",version="1"}' not in text
    assert 'trpo_tf_drift_observations{model="discrete",version="2"} 1\n' in text
    metrics.show(Catalog(absent=frozenset(["discrete"])))
    text = render(metrics).decode()
    assert 'trpo_tf_model_ready{model="discrete"} 0\n' in text
    assert "trpo_tf_model_info{" not in text
    metrics.show(catalog())
    assert "trpo_tf_model_ready{" not in render(metrics).decode()


def test_series_of_a_version_end_after_a_while_and_totals_of_its_model_stay(discrete, monkeypatch):
    monkeypatch.setattr("trpo_tf.serving.metrics.series.KEEP_SECONDS", 0.2)
    monkeypatch.setattr("trpo_tf.serving.metrics.series.FOLD_SECONDS", 0.4)
    counters, versions = SharedCounters(2), [model(discrete, version=version) for version in ("1", "2")]
    processes = [Metrics(counters, 0), Metrics(counters, 1)]
    for served in versions:
        for metrics in processes:
            metrics.show(catalog(served))
            metrics.series(served).answered(200, 1e-4)
            metrics.series(served).answered(400, 1e-4, "bad_request")
            metrics.publish()
    seen = []
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        for metrics in processes:
            text = render(metrics).decode()
            assert 'trpo_tf_errors_total{model="discrete",kind="bad_request"} 4\n' in text
            assert 'trpo_tf_request_seconds_count{model="discrete",protocol="http"} 8\n' in text
            seen += re.findall(r'requests_total{model="discrete",version="1",protocol="http",code="200"} (\d+)', text)
        time.sleep(0.02)
    assert set(seen) == {"2"}, "it is whole or it is not there"
    assert 'version="1"' not in text
    assert text.count('version="2",protocol="http",code=') == 2
    assert not any(b'"discrete","1"' in counters.read(slot) for slot in range(2))
    heir = Metrics(counters, 1)  # in the place of a worker that died
    assert 'trpo_tf_errors_total{model="discrete",kind="bad_request"} 4\n' in render(heir).decode()
    processes = processes[:1]
    for metrics in (*processes, heir):
        metrics.reloaded("discrete", "2", "unloaded")
        metrics.show(catalog())
    time.sleep(0.5)
    heir.publish()
    text = render(processes[0]).decode()
    assert "discrete" not in text
    assert not any(b"discrete" in counters.read(slot) for slot in range(2))


def test_a_version_that_comes_back_counts_on(discrete, monkeypatch):
    monkeypatch.setattr("trpo_tf.serving.metrics.series.KEEP_SECONDS", 0.1)
    monkeypatch.setattr("trpo_tf.serving.metrics.series.FOLD_SECONDS", 0.2)
    metrics, first, second = Metrics(), model(discrete), model(discrete, version="2")
    for served in (first, second, first):
        series = metrics.series(served)
        metrics.show(catalog(served))
        series.answered(200, 1e-4)
    time.sleep(0.3)
    series.answered(200, 1e-4)
    text = render(metrics).decode()
    assert 'trpo_tf_requests_total{model="discrete",version="1",protocol="http",code="200"} 3\n' in text
    assert 'version="2"' not in text


MODELS_END = """
import sys, trpo_tf.serving.metrics.series, trpo_tf.serving.__main__
trpo_tf.serving.metrics.series.KEEP_SECONDS, trpo_tf.serving.metrics.series.FOLD_SECONDS = 1, 1.5
sys.exit(trpo_tf.serving.__main__.main())
"""


def test_a_model_that_is_removed_alerts_nobody_and_one_that_cannot_act_does(start, discrete, tmp_path, scrape):
    models = tmp_path / "models"
    for name in ("walk", "run", "swim"):
        shutil.copytree(discrete, models / name / "1")
    (models / "swim" / "1" / "policy.onnx").unlink()
    with start(models, "--poll", "0.05", code=MODELS_END) as server:
        infer = [server.request("POST", f"/v2/models/{name}/infer", REQUEST)[0] for name in ("walk", "run")]
        metrics = scrape(server)
        ready = {name: metrics("trpo_tf_model_ready", model=name) for name in ("walk", "run", "swim")}
        assert (infer, ready) == ([200, 200], {"walk": 1, "run": 1, "swim": 0})
        shutil.rmtree(models / "run")
        deadline = time.monotonic() + 20
        while (metrics := scrape(server))("trpo_tf_model_ready", model="run") is not None:
            assert time.monotonic() < deadline
        labels = {"version": "1", "protocol": "http", "code": "200"}
        assert metrics("trpo_tf_requests_total", model="run", **labels) == 1
        while 'model="run"' in (text := scrape(server).text):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert 'trpo_tf_requests_total{model="walk",version="1",protocol="http",code="200"} 1\n' in text
        assert 'trpo_tf_model_ready{model="swim"} 0\n' in text


def test_another_policy_of_the_same_version_is_observed_anew(discrete, continuous):
    metrics, before, after = Metrics(), model(discrete, "policy"), model(continuous, "policy")
    metrics.show(catalog(before))
    metrics.watch(before).asked(np.ones((5, 4), np.float32))
    metrics.series(before).answered(200, 1e-5)
    metrics.show(catalog(after))
    old = metrics.series(before)
    metrics.watch(after).asked(np.zeros((2, 3)))
    old.answered(200, 1e-5)
    text = render(metrics).decode()
    assert 'trpo_tf_drift_observations{model="policy",version="1"} 2\n' in text
    assert 'trpo_tf_requests_total{model="policy",version="1",protocol="http",code="200"} 2\n' in text


def test_reloads_are_counted(discrete):
    metrics = Metrics()
    metrics.show(catalog(model(discrete)))
    for result in ("loaded", "loaded", "refused", "unloaded"):
        metrics.reloaded("discrete", "2", result)
    text = render(metrics).decode()
    for result, count in (("loaded", 2), ("refused", 1), ("unloaded", 1)):
        assert f'trpo_tf_model_reloads_total{{model="discrete",result="{result}"}} {count}\n' in text


def test_a_name_with_quotes_is_escaped(discrete):
    parser = pytest.importorskip("prometheus_client.parser")
    metrics, name = Metrics(), 'a"b\\c\nd'
    metrics.show(catalog(model(discrete, name)))
    samples = [s for f in parser.text_string_to_metric_families(render(metrics).decode()) for s in f.samples]
    assert {"model": name} in [sample.labels for sample in samples]


def count(counters: SharedCounters, slot: int, served: Model, requests: int, ready, ended) -> None:
    metrics = Metrics(counters, slot)
    metrics.show(catalog(served))
    for _ in range(requests):
        metrics.series(served).answered(200, 1e-4)
        metrics.watch(served).asked(np.full((1, 4), slot, np.float32))
    metrics.loads.append(lambda: (slot, 1))
    metrics.publish()
    ready.set()
    ended.wait(60)


def test_whoever_is_scraped_answers_for_all_workers_also_for_killed_ones(discrete):
    counters, served = SharedCounters(3), model(discrete)
    metrics = Metrics(counters, 0)
    metrics.show(catalog(served))

    def work(slot: int, requests: int):
        ready, ended = fork.Event(), fork.Event()
        process = fork.Process(target=count, args=(counters, slot, served, requests, ready, ended))
        process.start()
        assert ready.wait(60)
        return process

    def requests() -> str:
        return re.search(r'requests_total{model="discrete".*} (\d+)', render(metrics).decode())[1]

    workers = [work(1, 10), work(2, 30)]
    try:
        text = render(metrics).decode()
        assert requests() == "40"
        assert 'trpo_tf_request_seconds_count{model="discrete",protocol="http"} 40\n' in text
        assert "trpo_tf_connections 3\n" in text
        assert "trpo_tf_requests_in_flight 2\n" in text
        assert 'trpo_tf_observation_mean{model="discrete",version="1",input="obs",element="0"} 1.75\n' in text
        assert 'trpo_tf_drift_observations{model="discrete",version="1"} 40\n' in text
        os.kill(workers[0].pid, signal.SIGKILL)
        workers[0].join()
        assert requests() == "40"
        workers[0] = work(1, 5)
        assert requests() == "45"
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def test_threads_count_every_request(discrete):
    metrics, served = Metrics(), model(discrete)
    metrics.show(catalog(served))
    series, watch = metrics.series(served, "grpc"), metrics.watch(served, "grpc")

    def work(_):
        for _ in range(5000):
            series.answered("OK", 1e-4)
            watch.asked(np.ones((2, 4), np.float32))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            scrapes = threads.submit(lambda: [render(metrics) for _ in range(50)])
            list(threads.map(work, range(3)))
            scrapes.result()
    finally:
        sys.setswitchinterval(before)
    text = render(metrics).decode()
    assert 'trpo_tf_requests_total{model="discrete",version="1",protocol="grpc",code="OK"} 15000\n' in text
    assert 'trpo_tf_request_seconds_count{model="discrete",protocol="grpc"} 15000\n' in text
    assert 'trpo_tf_drift_observations{model="discrete",version="1"} 30000\n' in text


def test_docs_tell_every_metric_with_its_type_and_labels():
    rows = re.findall(r"^\| `((?:trpo_tf|process)_\w+)` \| (\w+) \|([^|]*)\|", PAGE, re.MULTILINE)
    assert {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows} == {
        name: (family.kind, family.labels) for name, family in FAMILIES.items()
    }
    kinds = re.search(r"^`kind` is one of (.*?)\.$", PAGE, re.MULTILINE | re.DOTALL)[1]
    assert set(re.findall(r"`(\w+)`", kinds)) == {*KINDS.values(), "not_finite"}


def test_a_scrape_has_the_types_that_the_code_says(server, scrape):
    server.request("POST", INFER, REQUEST)
    server.request("POST", INFER, {})
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", scrape(server).text, re.MULTILINE))
    assert types == {name: family.kind for name, family in FAMILIES.items()}
