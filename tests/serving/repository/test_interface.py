"""A new version whose inputs or outputs are others: it takes over only where that is allowed."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace

import pytest

from tests.support.serving.followed import Followed, put
from tests.support.serving.waiting import wait_for, workers_of
from trpo_tf.serving import ArraySpec, GraphSpec, NoiseSpec
from trpo_tf.serving.bundle.interface import breaking_change, from_json, interface_of, to_json
from trpo_tf.serving.bundle.manifest import Manifest
from trpo_tf.serving.errors import BundleError
from trpo_tf.serving.options import ServeOptions

BODY = {"inputs": [{"name": "obs", "shape": [1, 4], "datatype": "FP32", "data": [0.1, -0.2, 0.05, 0.3]}]}
POLICY = Manifest(
    "policy",
    (ArraySpec("obs", "float32", (4,), -1, 1),),
    ArraySpec("action", "int64", ()),
    NoiseSpec("gumbel", (2,)),
    GraphSpec(outputs=(ArraySpec("value", "float32", ()),)),
)


def graph(**changes) -> Manifest:
    return replace(POLICY, graph=replace(POLICY.graph, **changes))


FREE = {
    "bounds": replace(POLICY, observation=(ArraySpec("obs", "float32", (4,), -2, 2),)),
    "one more output": graph(outputs=(ArraySpec("value", "float32", ()), ArraySpec("logits", "float32", (2,)))),
    "noise that must be given, which the server does": graph(noise="required"),
    "name and provenance": replace(POLICY, name="other", provenance={"model_version": 7}),
}
BREAKING = {
    "obs float64[4], not obs float32[4]": replace(POLICY, observation=(ArraySpec("obs", "float64", (4,)),)),
    "obs float32[4, 1], not": replace(POLICY, observation=(ArraySpec("obs", "float32", (4, 1)),)),
    "observation float32[4], not": replace(POLICY, observation=(ArraySpec("observation", "float32", (4,)),)),
    "obs float32[4], speed float32[]": replace(
        POLICY, observation=(ArraySpec("speed", "float32", ()), *POLICY.observation)
    ),
    "its action is action int32[]": replace(POLICY, action=ArraySpec("action", "int32", ())),
    "its action is act int64[]": replace(POLICY, action=ArraySpec("act", "int64", ())),
    "further outputs are none, not value float32[]": graph(outputs=()),
    "further outputs are value float32[1]": graph(outputs=(ArraySpec("value", "float32", (1,)),)),
    "its noise is none, not gumbel noise float32[2]": graph(noise="none"),
    "its noise is normal noise float32[2]": replace(POLICY, noise=NoiseSpec("normal", (2,))),
    "batches are of 8, not of any number": graph(batch=8),
}


@pytest.mark.parametrize("newer", FREE.values(), ids=FREE)
def test_what_may_change(newer):
    assert breaking_change(interface_of(POLICY), interface_of(newer)) == ""


@pytest.mark.parametrize(("why", "newer"), BREAKING.items())
def test_what_breaks_clients(why, newer):
    assert why in breaking_change(interface_of(POLICY), interface_of(newer))


@pytest.mark.parametrize("manifest", [POLICY, *FREE.values(), *BREAKING.values()])
def test_an_interface_is_the_same_after_a_way_through_json(manifest):
    interface = interface_of(manifest)
    assert from_json(json.loads(json.dumps(to_json(interface)))) == interface


def test_what_was_missing_may_come():
    assert breaking_change(interface_of(graph(noise="none")), interface_of(POLICY)) == ""
    assert breaking_change(interface_of(graph(batch=8)), interface_of(POLICY)) == ""
    assert breaking_change(interface_of(graph(batch=8)), interface_of(graph(batch=8))) == ""
    assert "of 9, not of 8" in breaking_change(interface_of(graph(batch=8)), interface_of(graph(batch=9)))


def test_a_version_of_another_interface_is_refused_also_after_a_restart(discrete, continuous, tmp_path):
    put(discrete, tmp_path / "walk" / "1")
    followed = Followed(tmp_path)
    put(continuous, tmp_path / "walk" / "2")
    assert followed.scan() == []
    assert followed.scan() == [("walk", "2", "refused")]
    assert "its inputs are" in followed.events[0][3]
    assert "--allow-new-interface" in followed.repository.catalog.entries[0].reason
    with pytest.raises(BundleError, match="as clients of version 1 expect"):
        followed.repository.load("walk")
    put(continuous, tmp_path / "walk" / "3")
    assert [followed.scan(), followed.scan()] == [[], [("walk", "3", "refused")]]
    assert followed.answers("walk") == Followed(tmp_path).answers("walk") == "1"
    assert Followed(tmp_path, ServeOptions(versions=2)).loaded == {"walk": ["1"]}
    put(discrete, tmp_path / "walk" / "4")
    assert followed.scan() == [("walk", "4", "loaded"), ("walk", "1", "unloaded")]
    assert Followed(tmp_path).loaded == {"walk": ["4"]}


def test_it_takes_over_where_that_is_allowed_and_is_said(discrete, continuous, tmp_path, caplog):
    put(discrete, tmp_path / "walk" / "1")
    allowing = Followed(tmp_path, ServeOptions(allow_new_interface=True))
    put(continuous, tmp_path / "walk" / "2")
    assert allowing.scan() == [("walk", "2", "loaded"), ("walk", "1", "unloaded")]
    assert caplog.text.count("walk version 2 has another interface: its inputs are") == 1


def test_it_takes_over_once_the_older_ones_are_gone_and_nothing_acts(discrete, continuous, tmp_path):
    put(discrete, tmp_path / "walk" / "1")
    followed = Followed(tmp_path)
    put(continuous, tmp_path / "walk" / "2")
    followed.scan()
    followed.scan()
    shutil.rmtree(tmp_path / "walk" / "1")
    followed.scan()
    assert followed.answers("walk") == "1"
    followed.repository.unload("walk")
    followed.repository.load("walk")
    assert followed.loaded == Followed(tmp_path).loaded == {"walk": ["2"]}


def test_a_bundle_that_is_replaced_in_its_place_is_compared_with_what_acts(discrete, continuous, tmp_path):
    bundle = put(discrete, tmp_path / "walk")
    followed = Followed(tmp_path)
    shutil.rmtree(bundle)
    put(continuous, bundle)
    assert [followed.scan(), followed.scan(), followed.scan()] == [[], [("walk", "", "refused")], []]
    assert followed.answers("walk") == "1"
    shutil.rmtree(bundle)
    put(discrete, bundle)
    assert followed.scan() == [("walk", "1", "loaded")]


def test_to_go_back_is_to_remove_the_newest_also_if_it_answered_more(discrete, tmp_path):
    """The older version lacks an output that the newer one had."""
    put(discrete, tmp_path / "walk" / "1")
    newer = put(discrete, tmp_path / "walk" / "2")
    followed = Followed(tmp_path)
    assert followed.answers("walk") == "2"
    document = json.loads((newer / "manifest.json").read_text())
    assert document["graph"]["outputs"] == []
    shutil.rmtree(newer)
    assert followed.scan() == [("walk", "1", "loaded"), ("walk", "2", "unloaded")]


def test_a_refused_version_does_not_come_to_act_when_it_is_the_oldest(discrete, continuous, tmp_path):
    """Also where two versions are kept loaded, and the older would answer most of a canary's requests."""
    put(discrete, tmp_path / "walk" / "1")
    followed = Followed(tmp_path, ServeOptions(versions=2))
    put(continuous, tmp_path / "walk" / "2")
    put(discrete, tmp_path / "walk" / "3")
    followed.scan()
    followed.scan()
    assert followed.loaded == {"walk": ["1", "3"]}
    shutil.rmtree(tmp_path / "walk" / "1")
    followed.scan()
    followed.scan()
    assert followed.loaded == {"walk": ["3"]}
    assert "version 3 is acting, and differs: its inputs are" in followed.repository.catalog.entries[1].reason


def test_a_worker_that_takes_anothers_place_keeps_to_its_interface(start, discrete, continuous, tmp_path):
    """The refused version is the oldest in the folder, so the folder alone would make it the one that decides."""
    walk = tmp_path / "models" / "walk"
    put(discrete, walk / "1")
    with start(tmp_path / "models", "--poll", "0.05", "--workers", "2") as server:

        def version() -> str:
            status, answer = server.request("POST", "/v2/models/walk/infer", BODY)[:2]
            assert status == 200
            return answer["model_version"]

        put(continuous, walk / "2")
        assert server.process.stderr.readline().startswith("refused walk version 2")
        put(discrete, walk / "3")
        wait_for(lambda: {version() for _ in range(20)} == {"3"})
        shutil.rmtree(walk / "1")
        before = workers_of(server.process)
        for worker in before:
            os.kill(worker, signal.SIGKILL)
        wait_for(lambda: len(set(workers_of(server.process)) - set(before)) == 2, 10)
        assert {version() for _ in range(40)} == {"3"}


def test_a_server_says_so_and_goes_on_with_the_older_one(start, discrete, continuous, tmp_path, scrape):
    put(discrete, tmp_path / "models" / "walk" / "1")
    with start(tmp_path / "models", "--poll", "0.05") as server:
        put(continuous, tmp_path / "models" / "walk" / "2")
        line = server.process.stderr.readline()
        assert re.fullmatch(r"refused walk version 2: its inputs are .*, as clients of version 1 expect; .*\n", line)
        assert server.request("POST", "/v2/models/walk/infer", BODY)[1]["model_version"] == "1"
        assert scrape(server)("trpo_tf_model_reloads_total", model="walk", result="refused") == 1
        server.stop(signal.SIGTERM)
    with start(tmp_path / "models", "--allow-new-interface", "--workers", "2") as server:
        assert server.request("POST", "/v2/models/walk/infer", BODY)[0] == 400
        assert server.warnings.count("walk version 2 has another interface") == 1
        assert server.request("GET", "/v2/models/walk")[1]["versions"] == ["2"]
