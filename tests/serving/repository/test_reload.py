"""Models that come and go while real clients ask, and the processes that answer them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.serving.asking import BODY, all_at, clients, failures
from tests.support.serving.followed import put
from tests.support.serving.waiting import wait_for, workers_of
from trpo_tf.serving.keys import read_keys

QUICK = ("--poll", "0.05")
WORKERS = pytest.mark.parametrize("workers", ["1", "2"])


# Reloading


@WORKERS
def test_new_versions_answer_and_no_request_fails(start, discrete, models, workers):
    with start(models, *QUICK, "--workers", workers) as server, clients(server.connect) as asking:
        for version in ("2", "3", "4"):
            put(discrete, models / "walk" / version)
            wait_for(lambda version=version: all_at(asking, version))
        shutil.rmtree(models / "walk" / "4")
        wait_for(lambda: all_at(asking, "3"))
    assert failures(asking) == []
    if workers == "1":
        for client in asking:
            assert [version for version, *_ in runs(client.versions)] == ["1", "2", "3", "4", "3"]


def runs(values: list[str]) -> list[str]:
    return [value for place, value in enumerate(values) if place == 0 or values[place - 1] != value]


def test_a_bad_version_is_said_once_and_the_old_one_goes_on(start, discrete, models):
    with start(models, *QUICK) as server, clients(server.connect) as asking:
        bad = put(discrete, models / "walk" / "2")
        (bad / "policy.onnx").write_bytes((bad / "policy.onnx").read_bytes()[:-1])
        os.utime(bad / "manifest.json")
        line = server.process.stderr.readline()
        assert re.fullmatch(r"refused walk version 2: .*policy\.onnx is not what was exported .*\n", line)
        time.sleep(0.5)
        asked = sum(len(client.versions) for client in asking)
        wait_for(lambda: sum(len(client.versions) for client in asking) > asked + 100)
        assert server.request("GET", "/v2/models/walk/ready")[0] == 200
        assert server.request("GET", "/v2/models/walk/versions/2/ready")[0] in (200, 503)
        assert server.request("GET", "/v2/health/ready")[0] == 200
        shutil.copy(discrete / "policy.onnx", bad / "policy.onnx")
        wait_for(lambda: all_at(asking, "2"))
        for client in asking:
            client.is_enough.set()
        status, said = server.stop(signal.SIGTERM)
        assert (status, said) == (0, "loaded walk version 2\nunloaded walk version 1\n")
    assert failures(asking) == []


def test_a_single_bundle_is_replaced_by_rename_under_load(start, discrete, tmp_path):
    bundle = put(discrete, tmp_path / "bundle")
    with start(bundle, *QUICK) as server, clients(server.connect, path="/v2/models/discrete/infer") as asking:
        for version in ("5", "6"):
            newer = Path(shutil.copytree(discrete, tmp_path / version))
            document = json.loads((newer / "manifest.json").read_text())
            document["provenance"]["model_version"] = int(version)
            (newer / "manifest.json").write_text(json.dumps(document))
            bundle.rename(tmp_path / f"before {version}")
            newer.rename(bundle)
            wait_for(lambda version=version: all_at(asking, version))
    assert failures(asking) == []


@pytest.mark.slow
def test_the_benchmark_sees_no_failure():
    options = ["--seconds", "2", "--every", "0.4", "--clients", "2", "--workers", "2"]
    command = [sys.executable, "-m", "benchmarks.serving.reload", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    reloads, asked, failed, seen, *_ = done.stdout.splitlines()[-1].strip("| ").split(" | ")
    assert int(reloads) > 1
    assert int(asked) > 10
    assert (failed, int(seen) > 1) == ("0", True)


def test_older_versions_answer_where_they_are_kept(start, discrete, models):
    for version in ("2", "3"):
        put(discrete, models / "walk" / version)
    with start(models, "--versions", "2") as server:
        assert server.request("GET", "/v2/models/walk")[1]["versions"] == ["3", "2"]
        assert [
            server.request("POST", f"/v2/models/walk{version}/infer", BODY)[1].get("model_version")
            for version in ("", "/versions/3", "/versions/2", "/versions/1")
        ] == ["3", "3", "2", None]
        assert server.request("GET", "/v2/models/walk/versions/2/ready")[0] == 200
        assert server.request("GET", "/v2/models/walk/versions/1/ready")[0] == 503
        assert server.request("GET", "/v2/models/walk/versions/9/ready")[0] == 404
        states = server.request("GET", "/v1/models/walk")[1]["model_version_status"]
        assert [state["version"] for state in states] == ["3", "2"]
        paths = server.request("GET", "/openapi.json")[1]["paths"]
        assert {path for path in paths if path.endswith("infer")} == {
            f"/v2/models/walk{version}/infer" for version in ("", "/versions/2", "/versions/3")
        }


def test_a_canary_gets_its_share_of_what_names_no_version(start, discrete, models):
    put(discrete, models / "walk" / "2")
    with start(models, "--versions", "2", "--canary", "0.2") as server:
        acted = Counter(server.request("POST", "/v2/models/walk/infer", BODY)[1]["model_version"] for _ in range(50))
        assert acted == {"1": 40, "2": 10}
        predicted = Counter()
        connection = server.connect()
        for _ in range(50):
            connection.request("POST", "/v1/models/walk:predict", '{"instances": [[0, 0, 0, 0]]}')
            response = connection.getresponse()
            response.read()
            predicted[response.headers["model-version"]] += 1
        connection.close()
        assert predicted == {"1": 40, "2": 10}
        assert server.request("POST", "/v2/models/walk/versions/2/infer", BODY)[1]["model_version"] == "2"


def test_several_models_each_with_its_own_inputs(start, discrete, continuous, tmp_path):
    put(discrete, tmp_path / "models" / "walk")
    put(continuous, tmp_path / "models" / "run")
    with start(tmp_path / "models") as server:
        assert server.announcement.startswith("serving run, walk on http://")
        assert server.request("GET", "/v2/models/run")[1]["inputs"][0]["shape"] == [-1, 3]
        answer = server.request("POST", "/v2/models/walk/infer", BODY)[1]
        assert (answer["model_name"], answer["model_version"]) == ("walk", "1")
        assert "'obs' must have" in server.request("POST", "/v2/models/run/infer", BODY)[1]["error"]
        assert server.request("GET", "/v2/models/discrete")[0] == 404


# Readiness


def test_ready_once_a_model_is(start, discrete, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    with start(models, *QUICK) as server:
        assert server.announcement.startswith("serving nothing yet on http://")
        assert server.request("GET", "/v2/health/live")[0] == 200
        assert server.request("GET", "/v2/health/ready") == (503, {"ready": False})
        assert server.request("GET", "/openapi.json")[0] == 200
        put(discrete, models / "walk" / "1")
        wait_for(lambda: server.request("GET", "/v2/health/ready") == (200, {"ready": True}))


def half_copied(discrete: Path, models: Path) -> Path:
    """A new model of which only the manifest is there."""
    new = models / "run" / "1"
    new.mkdir(parents=True)
    shutil.copy(discrete / "manifest.json", new)
    return new


@WORKERS
def test_a_new_model_that_is_half_copied_or_broken_takes_nobody_out_of_service(start, discrete, models, workers):
    arguments = [*QUICK, "--workers", workers]
    with start(models, *arguments) as server:
        new = half_copied(discrete, models)
        wait_for(lambda: server.request("GET", "/v2/models/run/ready") == (503, {"name": "run", "ready": False}))
        assert server.request("GET", "/v2/health/ready")[0] == 200
        assert server.process.stderr.readline().startswith("refused run version 1")
        assert {server.request("GET", "/v2/health/ready")[0] for _ in range(20)} == {200}
        assert server.request("GET", "/v2/models/run/versions/1/ready")[0] == 503
        assert server.request("POST", "/v2/models/run/infer", BODY)[0] == 404
        assert server.request("GET", "/v2/models/walk/ready")[0] == 200
        assert server.request("POST", "/v2/models/walk/infer", BODY)[0] == 200
        server.stop(signal.SIGTERM)
    with start(models, *arguments) as server:
        assert {server.request("GET", "/v2/health/ready")[0] for _ in range(20)} == {200}
        shutil.copytree(discrete, new, dirs_exist_ok=True)
        wait_for(lambda: {server.request("GET", "/v2/models/run/ready")[0] for _ in range(10)} == {200})


@WORKERS
def test_strict_readiness_is_that_of_every_model(start, discrete, models, workers):
    with start(models, *QUICK, "--workers", workers, "--strict-readiness") as server:
        assert server.request("GET", "/v2/health/ready")[0] == 200
        new = half_copied(discrete, models)
        wait_for(lambda: {server.request("GET", "/v2/health/ready")[0] for _ in range(10)} == {503})
        assert server.request("POST", "/v2/models/walk/infer", BODY)[0] == 200
        shutil.rmtree(new.parent)
        wait_for(lambda: {server.request("GET", "/v2/health/ready")[0] for _ in range(10)} == {200})


@pytest.mark.parametrize("strict", [[], ["--strict-readiness"]], ids=["any", "every"])
def test_readiness_over_grpc_is_the_same(start, discrete, models, strict):
    grpc = pytest.importorskip("grpc")
    from trpo_tf.serving.codecs.grpc_messages import HEALTH_CHECK, SERVER_READY

    half_copied(discrete, models)
    with (
        start(models, "--grpc-port", "0", *strict) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        ready, health = (
            channel.unary_unary(call.path, response_deserializer=call.response.FromString)(b"", timeout=10)
            for call in (SERVER_READY, HEALTH_CHECK)
        )
        assert (ready.ready, health.status) == (not strict, 2 if strict else 1)


@WORKERS
def test_a_repository_in_which_nothing_loads_is_one_line(models, workers):
    (models / "walk" / "1" / "policy.onnx").unlink()
    command = [sys.executable, "-m", "trpo_tf", "serve", str(models), "--port", "0", "--workers", workers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .*policy\.onnx can't be read .*\n", done.stderr)


WITHOUT_PRIVILEGES = """
import os, sys
served = [sys.executable, "-m", "trpo_tf", "serve", *sys.argv[1:]]
as_others = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 else []
os.execvp([*as_others, *served][0], [*as_others, *served])
"""


@pytest.mark.skipif(os.getuid() == 0 and not shutil.which("setpriv"), reason="root may read everything")
class TestWhatMayNotBeRead:
    """The server may not read what its mode forbids, as it is of users other than root."""

    @WORKERS
    @pytest.mark.parametrize("place", ["", "walk", "walk/1", "walk/1/manifest.json", "walk/1/policy.onnx"])
    def test_at_the_start_it_is_one_line(self, models, workers, place):
        (models / place).chmod(0)
        command = [sys.executable, "-c", WITHOUT_PRIVILEGES, str(models), "--port", "0", "--workers", workers]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        (models / place).chmod(0o755)
        assert done.returncode == 2
        assert re.fullmatch(r"error: .*can't be read \(Permission denied\).*\n", done.stderr)

    def test_a_bundle_is_one_line_as_well(self, models):
        (models / "walk" / "1").chmod(0)
        command = [sys.executable, "-c", WITHOUT_PRIVILEGES, str(models / "walk" / "1"), "--port", "0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 2
        assert re.fullmatch(r"error: .*can't be read \(Permission denied\).*\n", done.stderr)

    @pytest.mark.parametrize("place", ["", "walk", "walk/2", "walk/2/manifest.json"])
    def test_while_it_runs_everything_stays(self, start, discrete, models, place):
        put(discrete, models / "walk" / "2")
        with start(models, *QUICK, code=WITHOUT_PRIVILEGES) as server:
            (models / place).chmod(0)
            assert "can't be read (Permission denied)" in server.process.stderr.readline()
            time.sleep(0.3)
            assert server.request("POST", "/v2/models/walk/infer", BODY)[1]["model_version"] == "2"
            assert server.request("GET", "/v2/health/ready")[0] == 200
            (models / place).chmod(0o755)
            put(discrete, models / "walk" / "3")
            wait_for(lambda: server.request("GET", "/v2/models/walk")[1]["versions"] == ["3"])

    def test_a_folder_that_never_could_be_read_is_no_model(self, start, models, scrape):
        (models / "other").mkdir(0)
        with start(models, *QUICK, "--strict-readiness", code=WITHOUT_PRIVILEGES) as server:
            assert "'other' (it can't be read (Permission denied))" in server.warnings
            assert server.request("GET", "/v2/health/ready")[0] == 200
            assert scrape(server)("trpo_tf_model_ready", model="other") is None

    def test_a_new_volume_is_a_repository_to_be(self, start, models):
        shutil.rmtree(models / "walk")
        (models / "lost+found").mkdir(0)
        with start(models, code=WITHOUT_PRIVILEGES) as server:
            assert (server.warnings, "nothing yet" in server.announcement) == ("", True)


# Told by a client


@pytest.fixture
def keyed(tmp_path):
    """A file of keys, and the header that shows one."""
    made = subprocess.run(
        [sys.executable, "-m", "trpo_tf.serving.keys", "robot"], capture_output=True, text=True, check=True
    )
    (tmp_path / "keys").write_text(made.stdout)
    assert read_keys(tmp_path / "keys")
    return str(tmp_path / "keys"), {"Authorization": f"Bearer {made.stderr.strip()}"}


@WORKERS
def test_tritonclient_loads_and_unloads(start, discrete, models, keyed, workers):
    httpclient = pytest.importorskip("tritonclient.http")
    from tritonclient.utils import InferenceServerException

    keys, header = keyed
    put(discrete, models / "run" / "1")
    with (
        start(models, "--poll", "0", "--repository-api", "--keys", keys, "--workers", workers) as server,
        httpclient.InferenceServerClient(f"127.0.0.1:{server.port}") as client,
    ):

        def everywhere(path: str) -> set[int]:
            """The status that each of many connections gets, so that every worker is asked."""
            return {server.request("GET", path, headers=header)[0] for _ in range(30)}

        def states() -> list[tuple[str, ...]]:
            index = client.get_model_repository_index(headers=header)
            return [(entry["name"], entry["version"], entry["state"]) for entry in index]

        assert "model_repository" in client.get_server_metadata(header)["extensions"]
        assert states() == [("run", "1", "READY"), ("walk", "1", "READY")]
        client.unload_model("walk", headers=header)
        assert states() == [("run", "1", "READY"), ("walk", "1", "UNAVAILABLE")]
        assert everywhere("/v2/models/walk/ready") == {503}
        assert everywhere("/v2/models/walk") == {404}
        assert everywhere("/v2/health/ready") == {200}
        put(discrete, models / "walk" / "2")
        client.load_model("walk", headers=header)
        assert everywhere("/v2/models/walk/versions/2/ready") == {200}
        put(discrete, models / "fly" / "1")
        client.load_model("fly", headers=header)
        assert everywhere("/v2/models/fly/ready") == {200}
        (put(discrete, models / "walk" / "3") / "golden.npz").unlink()
        with pytest.raises(InferenceServerException, match=r"golden\.npz can't be read"):
            client.load_model("walk", headers=header)
        assert everywhere("/v2/models/walk/versions/2/ready") == {200}
        for act in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException, match="there is no model 'swim'"):
                act("swim", headers=header)
        with pytest.raises(InferenceServerException, match="parameters are not taken"):
            client.load_model("walk", headers=header, config='{"backend": "python"}')
        assert server.request("POST", "/v2/repository/models/fly/load", {"parameters": None}, header) == (200, {})
        assert len(server.request("POST", "/v2/repository/index", {"ready": None}, header)[1]) > 2
        ready = server.request("POST", "/v2/repository/index", {"ready": True}, header)[1]
        assert {(entry["name"], entry["version"]) for entry in ready} == {("run", "1"), ("walk", "2"), ("fly", "1")}
        for path in ("index", "models/walk/load", "models/walk/unload"):
            assert server.request("POST", f"/v2/repository/{path}")[0] == 401
            assert server.request("GET", f"/v2/repository/{path}", headers=header)[0] == 405


def test_a_worker_that_is_started_again_leaves_unloaded_what_was(start, discrete, models, keyed):
    keys, header = keyed
    put(discrete, models / "run" / "1")
    with start(models, "--repository-api", "--keys", keys, "--workers", "2") as server:
        assert server.request("POST", "/v2/repository/models/walk/unload", "", header) == (200, {})
        before = workers_of(server.process)
        for worker in before:
            os.kill(worker, signal.SIGKILL)
        wait_for(lambda: len(set(workers_of(server.process)) - set(before)) == 2)
        assert {server.request("GET", "/v2/models/walk/ready", headers=header)[0] for _ in range(20)} == {503}


def test_a_client_loads_nothing_unless_it_is_allowed_to(start, server, models, tmp_path):
    for path in ("index", "models/discrete/load", "models/discrete/unload"):
        status, answer = server.request("POST", f"/v2/repository/{path}", {})
        assert (status, "--repository-api" in answer["error"]) == (404, True)
    assert server.request("GET", "/v2")[1]["extensions"] == ["binary_tensor_data", "sequence"]
    for more in ([], ["--uds", "socket"], ["--insecure"]):
        command = [sys.executable, "-m", "trpo_tf", "serve", str(models), "--repository-api", "--port", "0", *more]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "give --keys or --tls-client-ca, or only --uds" in done.stderr
