"""How long a sequence lives: until it expires, across reloads, versions and keys, and to the end of the server."""

import json
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.support.serving.followed import put
from tests.support.serving.triton_sequences import BUNDLE, HIDDEN, INFER, SEEN, TRANSPORTS, Triton, clients, document
from tests.support.serving.waiting import wait_for
from trpo_tf import serving


@pytest.fixture(scope="module")
def policy():
    return serving.load(BUNDLE)


@TRANSPORTS
def test_an_idle_sequence_expires_and_is_told_from_one_that_never_began(transport, start, scrape):
    with (
        start(BUNDLE, "--grpc-port", "0", "--sequence-idle", "0.2") as server,
        clients(server, transport, None) as (triton,),
    ):
        triton.act(SEEN[0], 1, start=True)
        wait_for(lambda: scrape(server)("trpo_tf_sequences_expired_total", model="recurrent") == 1)
        assert "there is no sequence 1: it expired after 0.2 s without a step" in triton.refusal(SEEN[:1], 1)
        assert "there is no sequence 2: it never began" in triton.refusal(SEEN[:1], 2)
        assert scrape(server)("trpo_tf_errors_total", model="recurrent", kind="no_sequence") == 2
        triton.act(SEEN[0], 1, start=True)


@TRANSPORTS
def test_a_sequence_stays_on_its_version_across_a_reload(transport, tmp_path, start, policy, scrape):
    models = tmp_path / "models"
    put(BUNDLE, models / "walk" / "1")
    with start(models, "--poll", "0.05", "--grpc-port", "0") as server:
        triton, session = Triton(server, transport, "walk"), policy.start()
        for number in range(12):
            if number == 4:
                put(BUNDLE, models / "walk" / "2")
                wait_for(lambda: server.request("GET", "/v2/models/walk")[1]["versions"] == ["2"])
            if number == 8:
                put(BUNDLE, models / "walk" / "3")
                wait_for(lambda: server.request("GET", "/v2/models/walk")[1]["versions"] == ["3"])
                triton.act(SEEN[0], 2, start=True)
            answer = triton.step(SEEN[number : number + 1], 1, start=number == 0)
            assert np.array_equal(answer.as_numpy("action")[0], session.act(SEEN[number]))
            told = answer.get_response()
            assert (told["model_version"] if transport == "http" else told.model_version) == "1"
        sample = scrape(server)
        assert [sample("trpo_tf_sequences", model="walk", version=version) for version in "123"] == [1, None, 1]
        shutil.rmtree(models / "walk")
        wait_for(lambda: scrape(server)("trpo_tf_sequences", model="walk", version="1") is None)
        put(BUNDLE, models / "walk" / "4")
        wait_for(lambda: server.request("GET", "/v2/models/walk")[1].get("versions") == ["4"])
        assert "there is no sequence 1: its model was unloaded" in triton.refusal(SEEN[:1], 1)
        triton.client.close()


@TRANSPORTS
def test_a_sequence_that_names_its_version_goes_on_after_it_is_unloaded(transport, tmp_path, start, policy):
    """But no other request reaches the version, nor does a start, nor a step after the end."""
    models, session = tmp_path / "models", policy.start()
    put(BUNDLE, models / "walk" / "1")
    with start(models, "--poll", "0.05", "--grpc-port", "0") as server:
        triton = Triton(server, transport, "walk")
        for number in range(8):
            if number in (2, 4):
                put(BUNDLE, models / "walk" / str(number))
                wait_for(lambda number=number: server.request("GET", "/v2/models/walk")[1]["versions"] == [str(number)])
            action = triton.act(SEEN[number], 1, version="1", start=number == 0, end=number == 7)
            assert np.array_equal(action, session.act(SEEN[number]))
            if number == 5:
                for asked in (
                    {"sequence_id": 0, "hidden": HIDDEN},
                    *({"sequence_id": n, "start": True} for n in (1, 2)),
                ):
                    refusal = triton.refusal(SEEN[:1], version="1", **asked)
                    assert "NOT_FOUND" in refusal or "404: model 'walk' has no version '1' that is loaded" in refusal
                assert re.search("NOT_FOUND|there is no sequence 2", triton.refusal(SEEN[:1], 2, version="1"))
        is_gone = "NOT_FOUND|404: model 'walk' has no version '1' that is loaded"
        wait_for(lambda: re.search(is_gone, triton.refusal(SEEN[:1], 1, version="1")))
        triton.client.close()


@TRANSPORTS
def test_a_canary_counts_sequences_not_their_steps(transport, tmp_path, start):
    for version in "12":
        put(BUNDLE, tmp_path / "models" / "walk" / version)
    options = ("--poll", "0", "--versions", "2", "--canary", "0.25", "--grpc-port", "0")
    with start(tmp_path / "models", *options) as server:
        triton = Triton(server, transport, "walk")
        versions = []
        for sequence in range(1, 9):
            acted = set()
            for step in range(4):
                told = triton.step(SEEN[:1], sequence, start=step == 0, end=step == 3).get_response()
                acted.add(told["model_version"] if transport == "http" else told.model_version)
            versions += acted
        assert versions == ["1", "1", "1", "2"] * 2
        triton.client.close()


@TRANSPORTS
def test_a_sequence_is_its_key_s_alone(transport, tmp_path, start, policy):
    keys, shown = tmp_path / "keys", []
    for name in ("robot", "stranger"):
        command = [sys.executable, "-m", "trpo_tf.serving.keys", name]
        made = subprocess.run(command, capture_output=True, text=True, check=True)
        keys.write_text((keys.read_text() if shown else "") + made.stdout)
        shown.append({"authorization": f"Bearer {made.stderr.split()[-1]}"})
    with (
        start(BUNDLE, "--keys", str(keys), "--grpc-port", "0") as server,
        clients(server, transport, *shown) as (robot, stranger),
    ):
        sessions = [policy.start(), policy.start()]
        assert np.array_equal(robot.act(SEEN[0], 1, start=True), sessions[0].act(SEEN[0]))
        assert "there is no sequence 1: it never began" in stranger.refusal(SEEN[:1], 1)
        assert np.array_equal(stranger.act(SEEN[5], 1, start=True), sessions[1].act(SEEN[5]))
        stranger.act(SEEN[6], 1, end=True)
        assert np.array_equal(robot.act(SEEN[1], 1), sessions[0].act(SEEN[1]))


@pytest.mark.parametrize(
    ("options", "why"), [(["--workers", "2"], "has 2 workers"), (["--max-sequences", "0"], "has --max-sequences 0")]
)
def test_a_server_that_keeps_no_state_says_so(options, why, start):
    with start(BUNDLE, *options) as server:
        status, answer = server.request("POST", INFER, document(1, sequence_start=True))
        assert status == 400
        assert answer["error"] == (
            f"sequence_id is not served: the server {why} and keeps no state; send the state with each request"
        )
        assert server.request("GET", "/v2")[1]["extensions"] == ["binary_tensor_data"]


def test_at_sigterm_steps_are_answered_and_a_restarted_server_knows_no_sequence(start, policy):
    session = policy.start()
    with start(BUNDLE) as server:
        connection = server.connect()
        for number in range(8):
            if number == 4:
                server.process.send_signal(signal.SIGTERM)
            connection.request("POST", INFER, json.dumps(document(1, SEEN[number], sequence_start=number == 0)))
            answer = json.loads(connection.getresponse().read())
            assert np.array_equal(np.float32(answer["outputs"][0]["data"]), session.act(SEEN[number]))
        connection.close()
        assert server.process.wait(20) == 0
    with start(BUNDLE) as server:
        status, answer = server.request("POST", INFER, document(1))
        assert status == 409
        assert "there is no sequence 1: it never began, or a server before this one had it" in answer["error"]


def test_a_bundle_that_is_replaced_in_its_place_keeps_its_sequences(tmp_path, start, policy):
    put(BUNDLE, tmp_path / "models" / "walk")
    path, session = "/v2/models/walk/infer", policy.start()
    with start(tmp_path / "models", "--poll", "0.05") as server:
        log = server.follow()
        for number in range(6):
            if number == 3:
                put(BUNDLE, tmp_path / "models" / ".new")
                (tmp_path / "models" / "walk").rename(tmp_path / "models" / ".old")
                (tmp_path / "models" / ".new").rename(tmp_path / "models" / "walk")
                wait_for(lambda: "loaded walk" in "".join(log))
            status, answer = server.request("POST", path, document(1, SEEN[number], sequence_start=number == 0))
            assert status == 200, answer
            assert np.array_equal(np.float32(answer["outputs"][0]["data"]), session.act(SEEN[number]))
