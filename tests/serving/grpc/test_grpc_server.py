"""The gRPC server: calls at a time, watchers, keys, TLS, its start and its end."""

import json
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from urllib.parse import quote

import pytest

grpc = pytest.importorskip("grpc")

from tests.support.serving.grpc_client import (  # noqa: E402
    BUSY,
    ROW,
    Code,
    call,
    channel_to,
    error_of,
    eventually,
    never,
    request_for,
    under_way,
    watch,
)
from trpo_tf.serving.codecs.grpc_messages import (  # noqa: E402
    HEALTH_CHECK,
    HEALTH_WATCH,
    INFERENCE,
    MODEL_INFER,
    SERVER_LIVE,
    SERVER_READY,
)
from trpo_tf.serving.errors import ServeError  # noqa: E402
from trpo_tf.serving.listening.sockets import GrpcSocket  # noqa: E402


def test_a_message_that_does_not_come_ends_its_call_and_no_other(start, discrete):
    """More such calls than a pool of threads would have. Those that end because others wait may come again."""
    with start(discrete, "--grpc-port", "0", "--timeout", "2") as server, channel_to(server) as channel:
        silence = threading.Event()
        stalled = [channel.stream_unary(MODEL_INFER.path).future(never(silence), timeout=20) for _ in range(40)]
        assert call(channel, MODEL_INFER, request_for(ROW)).model_name == "discrete"
        said = Counter((answer.exception().code(), answer.exception().details()) for answer in stalled)
        late = (Code.DEADLINE_EXCEEDED, "the message did not arrive in time")
        assert set(said) == {late, (Code.RESOURCE_EXHAUSTED, BUSY)}
        assert said.total() == 40
        silence.set()


def test_more_calls_at_a_time_than_allowed_are_refused_and_counted(start, discrete, scrape):
    """Health is asked for all the same, and a place is free as soon as its call has ended."""
    with start(discrete, "--grpc-port", "0", "--max-connections", "3") as server, channel_to(server) as channel:
        silence = threading.Event()
        stalled = [channel.stream_unary(MODEL_INFER.path).future(never(silence), timeout=20) for _ in range(3)]
        eventually(lambda: under_way(scrape(server)) == 3)
        assert error_of(channel, MODEL_INFER, request_for(ROW)) == (Code.RESOURCE_EXHAUSTED, BUSY)
        for method in (SERVER_LIVE, SERVER_READY, HEALTH_CHECK):
            call(channel, method)
        value = scrape(server)
        labels = {"model": "", "version": "", "protocol": "grpc"}
        assert value("trpo_tf_requests_total", code="RESOURCE_EXHAUSTED", **labels) == 1
        assert value("trpo_tf_errors_total", kind="busy", model="") == 1
        stalled[0].cancel()
        eventually(lambda: call(channel, MODEL_INFER, request_for(ROW)).model_name == "discrete")
        silence.set()


def test_more_calls_than_a_connection_may_have_wait_for_their_turn(channel):
    """The client holds back what is beyond the limit of 128. A call that it sends after an answer is not refused."""
    call(channel, SERVER_LIVE)  # the client knows the server's limit from now on
    ask, content = channel.unary_unary(MODEL_INFER.path), request_for(ROW).SerializeToString()
    outcomes = Counter(future.code() for future in [ask.future(content, timeout=10) for _ in range(250)])
    assert outcomes == {Code.OK: 250}


def test_watchers_take_no_places_of_calls(start, discrete, scrape):
    """Each connection may have some: one that asks for many does not keep others from theirs."""
    options = ("--grpc-port", "0", "--max-connections", "4")
    with start(discrete, *options) as server, channel_to(server) as greedy, channel_to(server) as other:
        mine = [watch(greedy) for _ in range(20)]
        told, refused = 0, []
        for stream in mine:
            try:
                told += next(stream).status == 1
            except grpc.RpcError as error:
                refused.append(error.code())
        assert (told, refused) == (8, [Code.RESOURCE_EXHAUSTED] * 12) or told < 8
        with pytest.raises(grpc.RpcError):  # two for each connection that is allowed
            next(watch(other))
        for channel in (greedy, other):
            assert call(channel, MODEL_INFER, request_for(ROW)).model_name == "discrete"
        for stream in mine:
            stream.cancel()
        eventually(lambda: next(watch(other)).status == 1)
        assert scrape(server)("trpo_tf_errors_total", kind="busy", model="") >= 13


@pytest.mark.parametrize("service", ["", INFERENCE])
def test_idle_clients_that_check_health_live_beside_one_that_acts(start, discrete, service):
    """gRPC's own health check holds a watch open on each connection."""
    pytest.importorskip("grpc_health")
    import grpc_health.v1.health  # noqa: F401 (which makes gRPC know of it)

    config = json.dumps({"healthCheckConfig": {"serviceName": service}, "loadBalancingConfig": [{"round_robin": {}}]})
    options = [("grpc.service_config", config), ("grpc.use_local_subchannel_pool", 1)]
    with start(discrete, "--grpc-port", "0", "--max-connections", "20") as server, ExitStack() as stack:
        address = f"ipv4:127.0.0.1:{server.grpc_port}"
        idle = [stack.enter_context(grpc.insecure_channel(address, options)) for _ in range(30)]
        for channel in idle:
            grpc.channel_ready_future(channel).result(10)
        with channel_to(server) as acting:
            for _ in range(20):
                assert call(acting, MODEL_INFER, request_for(ROW)).model_name == "discrete"
        assert call(idle[-1], MODEL_INFER, request_for(ROW)).model_name == "discrete"


def test_a_service_that_there_is_not_stays_watched(channel):
    stream = watch(channel, "x" * 100_000)
    assert next(stream).status == 3
    time.sleep(0.7)
    assert stream.is_active()
    stream.cancel()


def test_keys_are_asked_for_as_over_http(start, discrete, tmp_path):
    made = subprocess.run(
        [sys.executable, "-m", "trpo_tf.serving.keys", "robot"], capture_output=True, text=True, timeout=30, check=True
    )
    (tmp_path / "keys").write_text(made.stdout)
    key = made.stderr.strip()
    with start(discrete, "--grpc-port", "0", "--keys", str(tmp_path / "keys")) as server, channel_to(server) as channel:
        for wrong in ((), (("authorization", "Bearer no"),), (("authorization", key),), (("authorization", ""),)):
            code, message = error_of(channel, MODEL_INFER, request_for(ROW), metadata=wrong)
            assert (code, "Bearer KEY" in message) == (Code.UNAUTHENTICATED, True)
        right = (("authorization", f"Bearer {key}"),)
        assert call(channel, MODEL_INFER, request_for(ROW), metadata=right).model_name == "discrete"
        assert call(channel, SERVER_LIVE).live
        assert call(channel, HEALTH_CHECK).status == 1


def test_tls_and_client_certificates(start, discrete, certificates):
    def read(name):
        return (certificates / name).read_bytes()

    own = ("--tls-cert", str(certificates / "server.pem"), "--tls-key", str(certificates / "server.key"))
    trusting = grpc.ssl_channel_credentials(read("ca.pem"))
    with start(discrete, "--grpc-port", "0", *own) as server:
        assert re.search(r"on https://\S+ and grpcs://127\.0\.0\.1:\d+$", server.announcement)
        with channel_to(server, trusting) as channel:
            assert call(channel, MODEL_INFER, request_for(ROW)).model_name == "discrete"
        with channel_to(server) as plain:
            assert error_of(plain, SERVER_LIVE)[0] == Code.UNAVAILABLE
    with start(discrete, "--grpc-port", "0", *own, "--tls-client-ca", str(certificates / "ca.pem")) as server:
        for name, known in (("client", True), ("stranger", False)):
            shown = grpc.ssl_channel_credentials(read("ca.pem"), read(f"{name}.key"), read(f"{name}.pem"))
            with channel_to(server, shown) as channel:
                if known:
                    assert call(channel, SERVER_LIVE).live
                else:
                    assert error_of(channel, SERVER_LIVE)[0] == Code.UNAVAILABLE
        with channel_to(server, trusting) as channel:
            assert error_of(channel, SERVER_LIVE)[0] == Code.UNAVAILABLE


def test_a_rolling_restart_fails_no_request(start, discrete):
    """Clients that know two servers, of which one ends under load, and then the other is all they have."""
    outcomes, is_over = Counter(), threading.Event()
    with start(discrete, "--grpc-port", "0") as first, start(discrete, "--grpc-port", "0") as second:
        address = f"ipv4:127.0.0.1:{first.grpc_port},127.0.0.1:{second.grpc_port}"
        options = [("grpc.lb_policy_name", "round_robin"), ("grpc.use_local_subchannel_pool", 1)]

        def ask():
            with grpc.insecure_channel(address, options) as channel:
                while not is_over.is_set():
                    try:
                        outcomes[len(call(channel, MODEL_INFER, request_for(ROW)).outputs)] += 1
                    except grpc.RpcError as error:
                        outcomes[f"{error.code()}: {error.details()}"] += 1

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            while outcomes.total() < 100:
                time.sleep(0.01)
            assert first.stop(signal.SIGTERM) == (0, "")
            before = outcomes.total()
            while outcomes.total() < before + 100:
                time.sleep(0.01)
        finally:
            is_over.set()
            for thread in threads:
                thread.join(10)
    assert set(outcomes) == {1}


def test_a_watcher_is_told_of_the_end_and_does_not_delay_it(start, discrete):
    with start(discrete, "--grpc-port", "0") as server, channel_to(server) as channel:
        watch = channel.unary_stream(HEALTH_WATCH.path, response_deserializer=HEALTH_WATCH.response.FromString)(b"")
        assert next(watch).status == 1
        server.process.send_signal(signal.SIGTERM)
        assert [answer.status for answer in watch] == [2]
        assert server.process.wait(8) == 0


def test_a_watcher_is_told_of_an_end_that_comes_while_it_is_told_of_the_beginning(start, discrete):
    code = """
import os, signal, sys, trpo_tf.serving.__main__
from trpo_tf.serving.grpc.server import GrpcServer
watch = GrpcServer._watch
async def watch_to_the_end(self, context):
    class Context:
        read = context.read
        async def write(self, message, stopping=self._stopping):
            await context.write(message)
            if not stopping.is_set():
                os.kill(os.getpid(), signal.SIGTERM)
                await stopping.wait()
    await watch(self, Context())
GrpcServer._watch = watch_to_the_end
sys.exit(trpo_tf.serving.__main__.main(sys.argv[1:]))
"""
    with start(discrete, "--grpc-port", "0", code=code) as server, channel_to(server) as channel:
        watch = channel.unary_stream(HEALTH_WATCH.path, response_deserializer=HEALTH_WATCH.response.FromString)(b"")
        assert [answer.status for answer in watch] == [1, 2]
        assert server.process.wait(8) == 0


def test_a_second_signal_ends_what_is_under_way(start, discrete):
    with start(discrete, "--grpc-port", "0", "--drain", "60") as server, channel_to(server) as channel:
        silence = threading.Event()
        stalled = channel.stream_unary(MODEL_INFER.path).future(never(silence), timeout=30)
        assert call(channel, SERVER_LIVE).live
        server.process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert stalled.exception().code() in (Code.CANCELLED, Code.UNAVAILABLE)
        silence.set()


def serve_fails(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "trpo_tf", "serve", *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    return done.stderr


def test_grpc_on_a_unix_socket(start, discrete, tmp_path):
    """It has its permissions, replaces what a killed server left but no other file, and is gone in the end."""
    path = tmp_path / "a socket 100%"
    options = ("--grpc-uds", str(path), "--uds-mode", "660", "--access-log")
    with start(discrete, *options) as server:
        server.stop(signal.SIGKILL)
    assert path.is_socket()
    with start(discrete, *options) as server, grpc.insecure_channel(f"unix:{quote(str(path))}") as channel:
        assert server.announcement.endswith(f" and grpc+unix:{path}\n")
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        streams = [watch(channel) for _ in range(2)]
        assert [next(stream).status for stream in streams] == [1, 1]
        assert call(channel, MODEL_INFER, request_for(ROW)).model_name == "discrete"
        taken = "address already in use; choose another --grpc-uds"
        with pytest.raises(ServeError, match=taken):
            GrpcSocket(str(path), 0o600)
        assert call(channel, MODEL_INFER, request_for(ROW)).model_name == "discrete"
        status, said = server.stop(signal.SIGTERM)
    assert (status, said.count("call client=unix ")) == (0, 2)
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(ServeError, match="there is a file that is no socket"):
        GrpcSocket(str(path), 0o600)
    assert path.read_text() == "mine"


def test_a_unix_socket_that_was_taken_meanwhile_is_not_replaced(tmp_path):
    """While the models are loaded, another server may begin to listen."""
    place = GrpcSocket(str(tmp_path / "socket"), 0o600)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "socket"))
        other.listen()
        with pytest.raises(ServeError, match="address already in use"), place.opening():
            pass
        assert (tmp_path / "socket").exists()


def test_a_port_that_is_taken_is_one_line(grpc_server, discrete):
    port = grpc_server.grpc_port
    said = serve_fails(str(discrete), "--port", "0", "--grpc-port", str(port))
    assert said.startswith(f"error: can't listen on 127.0.0.1 port {port}: address already in use; choose")


def test_a_reachable_address_needs_keys_over_grpc_alone_too(discrete, tmp_path):
    said = serve_fails(str(discrete), "--uds", str(tmp_path / "socket"), "--host", "0.0.0.0", "--grpc-port", "0")
    assert "give --keys" in said


def test_grpc_is_imported_only_if_it_is_asked_for(start, discrete):
    absent = "import sys; sys.modules['grpc'] = None\n"
    absent += "from trpo_tf.serving.__main__ import main; sys.exit(main(sys.argv[1:]))"
    with start(discrete, code=absent) as server:
        assert server.request("GET", "/v2")[0] == 200
    done = subprocess.run(
        [sys.executable, "-c", absent, str(discrete), "--port", "0", "--grpc-port", "0"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        2,
        "error: --grpc-port needs grpc; pip install '.[grpc]' in a checkout of trpo-tf\n",
    )
