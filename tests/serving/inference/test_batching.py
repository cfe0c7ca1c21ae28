"""Requests that are run together: each is answered as if it were alone, and in its turn."""

import json
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest

from trpo_tf import serving
from trpo_tf.serving.codecs.request_validation import InferRequest
from trpo_tf.serving.inference.batching import batches, run_together
from trpo_tf.serving.inference.runners import Waiting

INFER = "/v2/models/judged/infer"
ROWS = np.float32([[0.25, 0.5], [0.04, -1.0], [0.5, 2.0]])
BAD = np.float32([[-0.25, 0.5]])


def asked(rows, *names, noise=None):
    return InferRequest(rows, dict.fromkeys(names or ("action",), False), noise)


@pytest.fixture(scope="module")
def policy(judged):
    return serving.load(judged)


class Counted:
    """A policy that remembers how many rows it was given at a time."""

    def __init__(self, policy):
        self._policy, self.manifest, self.rows = policy, policy.manifest, []

    def infer(self, observations, noise, outputs):
        self.rows.append(len(observations))
        return self._policy.infer(observations, noise, outputs)


def test_each_gets_its_own_rows_and_outputs(policy):
    noise = np.float32([[0, 0, 99]])
    requests = [asked(ROWS[:2], "value"), asked(ROWS[2:], "action", noise=noise), asked(ROWS[:1], "logits", "action")]
    counted = Counted(policy)
    together = run_together(counted, requests)
    assert counted.rows == [4]
    for request, answers in zip(requests, together, strict=True):
        alone = policy.infer(request.observations, request.noise, [*request.outputs])
        assert list(answers) == list(request.outputs)
        for name, values in answers.items():
            np.testing.assert_allclose(values, alone[name], rtol=1e-6)
    assert together[1]["action"].tolist() == [2]


def test_what_fails_alone_touches_no_other(policy):
    first, bad, last = run_together(policy, [asked(ROWS[:1], "value"), asked(BAD, "value"), asked(ROWS[1:], "value")])
    assert isinstance(bad, FloatingPointError)
    np.testing.assert_allclose(np.concatenate([first["value"], last["value"]]), np.sqrt(ROWS[:, 0]), rtol=1e-6)


def test_what_nobody_asked_for_may_be_anything(policy, caplog):
    """One request's value is not finite, which only another asks for; nothing is run again, and no fault is logged."""
    counted = Counted(policy)
    first, bad, last = run_together(counted, [asked(ROWS[:1], "value"), asked(BAD, "action"), asked(ROWS[1:], "value")])
    assert counted.rows == [4]
    assert caplog.records == []
    assert bad["action"].tolist() == policy.infer(BAD, None, ["action"])["action"].tolist()
    np.testing.assert_allclose(np.concatenate([first["value"], last["value"]]), np.sqrt(ROWS[:, 0]), rtol=1e-6)


def test_whose_observation_is_absurd_is_told_and_nobody_else(policy):
    absurd = np.float32([[-1e30, 0.5]])
    answers = run_together(policy, [asked(absurd, "value"), asked(BAD, "value"), asked(ROWS[:1], "value")])
    assert [getattr(answer, "is_absurd", None) for answer in answers] == [True, False, None]


class OneByOne(Counted):
    """A policy that has not the memory for more than a row."""

    def infer(self, observations, noise, outputs):
        if len(observations) > 1:
            raise MemoryError("too many rows")
        return super().infer(observations, noise, outputs)


@pytest.mark.parametrize(("rows", "told"), [(ROWS[1:2], ["too many rows"]), (BAD, [])])
def test_a_batch_that_fails_for_no_request_s_sake_is_told(policy, rows, told, caplog):
    """Whose requests fail alone does so for theirs, and they are answered so."""
    run_together(OneByOne(policy), [asked(ROWS[:1], "value"), asked(rows, "value")])
    assert [str(record.exc_info[1]) for record in caplog.records] == told


def test_batches_keep_order_and_have_no_more_rows_than_allowed():
    waiting = [Waiting(asked(np.zeros((rows, 2), np.float32))) for rows in (3, 1, 2, 5, 1, 1)]
    made = [[len(one.request.observations) for one in batch] for batch in batches(waiting, 4)]
    assert made == [[3, 1], [2], [5], [1, 1]]


# The server


def body_for(rows, *names):
    tensor = {"name": "obs", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}
    return json.dumps(
        {"id": str(float(rows[0, 0])), "inputs": [tensor], "outputs": [{"name": n} for n in names]}
    ).encode()


def post(body, more=b""):
    return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%b\r\n%b" % (INFER.encode(), len(body), more, body)


def received(connection):
    content = b""
    while chunk := connection.recv(65536):
        content += chunk
    return content


@pytest.fixture(scope="module")
def batching_server(judged, tmp_path_factory):
    from tests.support.serving.server import serve

    with serve(judged, tmp_path_factory.mktemp("server"), "--batching") as running:
        yield running


def test_many_connections_get_each_its_own_answer(batching_server, policy):
    def ask(number):
        rows = np.float32([[number + 1, -number]] * (1 + number % 3))
        status, answer = batching_server.request("POST", INFER, body_for(rows, "value"))
        wrong, _ = batching_server.request("POST", INFER, body_for(BAD, "value"))
        values = np.array(answer["outputs"][0]["data"])
        return status == 200 and wrong == 500 and np.allclose(values, np.sqrt(number + 1)) and len(values) == len(rows)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(40)))


@pytest.mark.parametrize("half_closed", [True, False])
def test_pipelined_requests_are_answered_in_order(batching_server, half_closed):
    """Among them what no policy answers, what is wrong, and what is not HTTP."""
    parts = [
        post(body_for(ROWS[:1], "value")),
        b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n",
        post(body_for(BAD, "value")),
        post(b"no JSON"),
        post(body_for(ROWS[2:], "value")),
    ]
    with socket.create_connection(("127.0.0.1", batching_server.port), 10) as connection:
        connection.sendall(b"".join(parts) + (b"" if half_closed else b"no HTTP\r\n\r\n"))
        if half_closed:
            connection.shutdown(socket.SHUT_WR)
        content = received(connection)
    statuses = [int(part[:3]) for part in content.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 200, 500, 400, 200, *([] if half_closed else [400])]
    assert content.index(b'"id":"0.25"') < content.index(b'"live"') < content.index(b'"id":"0.5"')


def test_offers_of_another_protocol_are_ignored_here_too(batching_server):
    offer = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    asked = [post(body_for(rows[None], "value"), offer) for rows in ROWS]
    with socket.create_connection(("127.0.0.1", batching_server.port), 10) as connection:
        connection.sendall(b"".join(asked) + post(body_for(ROWS[:1], "value")))
        connection.shutdown(socket.SHUT_WR)
        content = received(connection)
    assert content.count(b"HTTP/1.1 200 OK") == content.count(b"HTTP/1.1 ") == 4
    order = [content.index(b'"id":"%a"' % float(row[0])) for row in ROWS]
    assert order == sorted(order)


def test_connection_close_is_kept(batching_server):
    with socket.create_connection(("127.0.0.1", batching_server.port), 10) as connection:
        connection.sendall(post(body_for(ROWS[:1]), b"Connection: close\r\n"))
        assert received(connection).count(b"HTTP/1.1 200 OK") == 1


def test_a_whole_request_that_waits_is_not_under_way(start, judged):
    """It counts for no limit on what is not whole yet, and has one answer."""
    with start(judged, "--batching", "--max-buffered", "10", "--keep-alive", "1") as server:
        with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
            connection.sendall(post(body_for(ROWS[:1], "value")))
            content = received(connection)
        assert content.count(b"HTTP/1.1 ") == content.count(b"HTTP/1.1 200 OK") == 1


def test_it_ends_under_load_without_losing_an_answer(start, judged):
    lost, is_over = [], threading.Event()
    with start(judged, "--batching") as server:

        def ask():
            with closing(server.connect()) as connection:
                while not is_over.is_set():
                    try:
                        connection.request("POST", INFER, body_for(ROWS, "value"))
                        answer = connection.getresponse()
                    except OSError:
                        return  # it had closed the connection before the request came
                    try:
                        assert (answer.status, len(json.loads(answer.read())["outputs"])) == (200, 1)
                    except Exception as error:  # noqa: BLE001
                        lost.append(error)
                        return

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        assert server.stop(signal.SIGTERM) == (0, "")
        is_over.set()
        for thread in threads:
            thread.join(10)
    assert lost == []


def test_grpc_requests_are_run_together_too(start, judged):
    client = pytest.importorskip("tritonclient.grpc")

    def ask(number):
        tensor = client.InferInput("obs", [1, 2], "FP32")
        tensor.set_data_from_numpy(np.float32([[number, 0]]))
        with client.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as triton:
            if number < 0:
                with pytest.raises(Exception, match="'value' is not finite"):
                    triton.infer("judged", [tensor])
                return True
            return np.allclose(triton.infer("judged", [tensor]).as_numpy("value"), np.sqrt(number))

    with start(judged, "--batching", "--grpc-port", "0") as server, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(-4, 16)))
