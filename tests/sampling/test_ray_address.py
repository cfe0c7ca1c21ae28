"""Where no Ray cluster is, or one that asks for a token, a line says so: Ray itself would try for minutes."""

import json
import os
import re
import socket
import subprocess
import sys

import pytest

from trpo_tf.errors import UserError
from trpo_tf.sampling.engines.choose_engine import engine_for
from trpo_tf.sampling.workers import Workers

pytest.importorskip("ray")

ASKED = """
import concurrent.futures, grpc, json, os, sys
import ray._raylet
from trpo_tf.errors import UserError
from trpo_tf.sampling import ray_address

def answer(request, context):
    tokens = [value for name, value in context.invocation_metadata() if name == "authorization"]
    if asked and tokens != [f"Bearer {asked}"]:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
    return b""

server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
handlers = {"GetClusterId": grpc.unary_unary_rpc_method_handler(answer)}
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", handlers)])
port = server.add_insecure_port("127.0.0.1:0")
server.start()
for asked, variables in json.loads(sys.argv[1]):
    os.environ.pop("RAY_AUTH_TOKEN", None), os.environ.pop("RAY_AUTH_MODE", None)
    os.environ.update(variables)
    ray._raylet.Config.initialize("")
    try:
        ray_address._agree_on_token(f"127.0.0.1:{port}")
        print("a token" if ray._raylet.get_authentication_mode() else "no token")
    except UserError as error:
        print(error)
server.stop(0)
"""


def test_what_listens_but_is_no_head_is_refused(monkeypatch):
    monkeypatch.setattr("trpo_tf.sampling.ray_address._SECONDS_TO_ANSWER", 0.5)
    with (
        socket.create_server(("", 0)) as silent,
        pytest.raises(UserError, match="what listens there does not answer as the head of a Ray cluster"),
    ):
        engine_for(Workers(2, ray=f"127.0.0.1:{silent.getsockname()[1]}"))


def test_a_token_is_given_to_a_cluster_that_asks_for_it_alone(tmp_path):
    """In a process of its own, which answers as Ray's head does: a token is for the whole process."""
    right, wrong = {"RAY_AUTH_TOKEN": "right"}, {"RAY_AUTH_TOKEN": "wrong"}
    cases = [
        ("", right, "^no token$"),
        ("right", right, "^a token$"),
        ("right", wrong, "refuses the token; give that of its head"),
        ("right", {}, "asks for a token; give that of its head"),
        ("right", right | {"RAY_AUTH_MODE": "disabled"}, "asks for a token; unset RAY_AUTH_MODE"),
        ("", right | {"RAY_AUTH_MODE": "token"}, "takes no token; set RAY_AUTH_MODE=disabled"),
    ]
    asked = json.dumps([case[:2] for case in cases])
    variables = os.environ | {"HOME": str(tmp_path)}
    said = subprocess.run(
        [sys.executable, "-c", ASKED, asked], env=variables, stdout=subprocess.PIPE, text=True, check=True
    )
    for line, (*case, told) in zip(said.stdout.splitlines(), cases, strict=True):
        assert re.search(told, line), case


def test_auto_is_the_cluster_of_the_environment_variable(monkeypatch, small_config):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(UserError, match=r"RAY_ADDRESS can't be a http:// address; submit the run as a job"):
        Workers.of(Workers(2, ray="auto"), small_config(shards=2))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match=r"no Ray cluster at 127.0.0.1:1, which is RAY_ADDRESS"):
        engine_for(Workers(2, ray="auto"))
