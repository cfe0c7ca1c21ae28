"""Send malformed requests to a server, and check that it survives.

`python -m benchmarks.serving.fuzz [--requests 100000] [--seed 0]` starts a server of policies without state, with
state, with a recurrent cell and with masks. It sends damaged HTTP, JSON, binary tensors, framing and gRPC messages,
alone and in streams. States, resets, masks and steps of sequences don't fit, requests amplify (amplifying.py), and some
are good. It fails if the server ends, answers with a 5xx or INTERNAL, doesn't answer the good ones, or grows. Status
500 and INTERNAL are allowed for one thing alone: an action that is not finite. Without grpcio there is HTTP alone.
"""

import argparse
import json
import random
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.processes import resident_megabytes
from benchmarks.serving.malformed import INPUTS, infer_path, malformed, message, post

try:
    import grpc

    from trpo_tf.serving.codecs.grpc_messages import MODEL_INFER, MODEL_STREAM_INFER
except ImportError:
    grpc = None

BUNDLES = Path(__file__).parents[2] / "tests" / "serving" / "bundles"
GROWTH_MEGABYTES = 8.0
WARM_UP = 0.2
ANSWERS = grpc and {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
}


class FuzzError(Exception):
    """The server did what it must not; the message says for which request."""


def status_in_stream(channel, content: bytes) -> str:
    """Send a message twice in a stream, and return how it was answered. Raises `FuzzError`."""
    answers = channel.stream_stream(MODEL_STREAM_INFER.path)(iter([content, content]), timeout=10)
    said = [MODEL_STREAM_INFER.response.FromString(answer).error_message for answer in answers]
    if len(said) != 2 or "internal error" in said:
        raise FuzzError(f"messages of a stream are answered with {said}: {content!r}")
    return "in a stream"


def status_of(channel, content: bytes) -> str:
    """Call with a message, and return the status. Raises `FuzzError`."""
    try:
        channel.unary_unary(MODEL_INFER.path)(content, timeout=10)
    except grpc.RpcError as error:
        said = error.details()
        if error.code() not in ANSWERS and "not finite" not in said:
            raise FuzzError(f"a message is answered with {error.code()}, {said!r}: {content!r}") from None
        return error.code().name
    return "OK"


@contextmanager
def served() -> Iterator[tuple[int, int, str]]:
    """Start a server; provide its port, process id and gRPC address."""
    command = [sys.executable, "-m", "trpo_tf", "serve", str(BUNDLES), "--port", "0", "--timeout", "2"]
    command += ["--grpc-port", "0"] if grpc else []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            announced = re.search(r"http://[^ ]*:(\d+)(?: and grpc://(\S+))?", process.stderr.readline())
            if announced is None:
                raise FuzzError("the server did not start")
            yield int(announced[1]), process.pid, announced[2] or ""
            if process.poll() is not None:
                raise FuzzError(f"the server ended with status {process.returncode}")
        finally:
            process.kill()


def answers(port: int, request: bytes) -> bytes:
    """Send a request and nothing more; return all that the server answers."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                received += chunk
        except ConnectionError:
            pass
    return received


def fuzz(requests: int, seed: int) -> dict[str, object]:
    """Return the statuses of the answers, and the growth of memory. Raises `FuzzError`."""
    rng, statuses = random.Random(seed), Counter()
    good = [post(json.dumps({"inputs": inputs}).encode(), path=infer_path(model)) for model, inputs in INPUTS.items()]
    with served() as (port, pid, address), ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(address)) if grpc else None
        before = 0.0
        for number in range(requests):
            if number == int(WARM_UP * requests):
                before = resident_megabytes(pid)
            if channel is not None and rng.random() < 0.2:
                ask = status_in_stream if rng.random() < 0.3 else status_of
                statuses[ask(channel, message(rng))] += 1
                continue
            request = malformed(rng)
            answer = answers(port, request)
            for status in re.findall(rb"HTTP/1\.1 (\d+) ", answer) or [b"none"]:
                statuses[status.decode()] += 1
                if status[:1] == b"5" and status != b"501" and b"not finite" not in answer:
                    raise FuzzError(f"request {number} is answered with {answer[:300]!r}: {request!r}")
            if number % 50 == 0 and b" 200 OK" not in answers(port, good[number // 50 % len(good)]):
                raise FuzzError(f"after request {number} a good one is not answered: {request!r}")
        growth = resident_megabytes(pid) - before
    if growth > GROWTH_MEGABYTES:
        raise FuzzError(f"the server grew by {growth:.1f} MB")
    return {"requests": requests, "growth_megabytes": round(growth, 1), **dict(sorted(statuses.items()))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        print(json.dumps(fuzz(given.requests, given.seed)))
    except FuzzError as error:
        sys.exit(f"error: {error}")
