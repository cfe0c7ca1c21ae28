"""What gRPC calls may take up: messages that stop half way, and the turns in which they arrive."""

import asyncio
import signal
import threading
import time
from contextlib import closing

import numpy as np
import pytest

grpc = pytest.importorskip("grpc")

from tests.support.serving.http2 import PING, Call, Unfinished, frame  # noqa: E402
from trpo_tf.serving.codecs.grpc_messages import HEALTH_CHECK, HEALTH_WATCH, MODEL_INFER, MODEL_STREAM_INFER  # noqa: E402
from trpo_tf.serving.grpc import limits as grpc_limits  # noqa: E402
from trpo_tf.serving.grpc.limits import BusyError, OpenStreams, Turns  # noqa: E402
from trpo_tf.serving.grpc.listener import CLIENTS_PING_SECONDS  # noqa: E402

MEGABYTE = 2**20


def resident(process):
    with open(f"/proc/{process.pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.fixture
def sending():
    """Connections whose calls stop a byte before their messages' ends, served by a thread while the test goes on."""
    is_over, threads, senders = threading.Event(), [], []

    def start_sending(port, path, connections, calls, size):
        senders.extend(Unfinished(port, path, calls, size) for _ in range(connections))

        def send():
            while not is_over.is_set():
                for sender in senders:
                    sender.go_on()

        threads.append(threading.Thread(target=send))
        threads[-1].start()
        return senders

    yield start_sending
    is_over.set()
    for thread in threads:
        thread.join()
    for sender in senders:
        sender.close()


@pytest.mark.parametrize("path", [MODEL_INFER.path, MODEL_STREAM_INFER.path, HEALTH_CHECK.path])
def test_messages_that_stop_half_way_hold_little_memory_and_nobody_up(start, discrete, sending, path):
    """120 of a megabyte, of which --max-buffered allows two at a time; what isn't read is held back by its sender."""
    options = ("--grpc-port", "0", "--max-body", str(MEGABYTE), "--max-buffered", str(4 * MEGABYTE))
    request = MODEL_INFER.request(model_name="discrete", raw_input_contents=[np.zeros((1, 4), np.float32).tobytes()])
    request.inputs.add(name="obs", datatype="FP32", shape=[1, 4])
    with (
        start(discrete, *options) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):

        def ask():
            channel.unary_unary(MODEL_INFER.path)(request.SerializeToString(), timeout=10)
            channel.unary_unary(HEALTH_CHECK.path)(b"", timeout=10)

        ask()
        before = peak = resident(server.process)
        senders = sending(server.grpc_port, path, 6, 20, MEGABYTE - 100)
        until = time.monotonic() + 3
        while time.monotonic() < until:
            ask()
            peak = max(peak, resident(server.process))
            time.sleep(0.02)
        assert sum(sender.sent for sender in senders) > 4 * MEGABYTE, "they send what they may"
        assert peak - before < 48 * MEGABYTE, "of 120 MB"


@pytest.mark.parametrize(
    "path", [b"/\xff\xfe", b"/inference.GRPCInferenceService/\xc3\x28", b"", b"/x\0 y", b"/" + b"a" * 100]
)
def test_a_path_of_any_bytes_ends_its_call_alone(grpc_server, path):
    """The server would end at one that isn't UTF-8 if gRPC's own loop took it."""
    with closing(Call(grpc_server.grpc_port, path)) as odd:
        assert b"there is no such method" in odd.answer()
    with grpc.insecure_channel(f"127.0.0.1:{grpc_server.grpc_port}") as channel:
        channel.unary_unary(HEALTH_CHECK.path)(b"", timeout=10)


def test_metadata_of_any_bytes_is_nobodys_fault(start, discrete):
    """Nor a line of the log for each."""
    odd = {
        b"x-odd": b"\xff\xfe",
        b"authorization": b"Bearer \xff",
        b"traceparent": b"\xff" * 55,
        b"x-request-id": b"\xe9",
    }
    with start(discrete, "--grpc-port", "0", "--access-log") as server:
        with closing(Call(server.grpc_port, HEALTH_CHECK.path.encode(), odd)) as call:
            assert b"grpc-status\x010" in call.answer()
        status, said = server.stop(signal.SIGTERM)
    assert (status, said.count("\n")) == (0, 1), said


@pytest.mark.parametrize("path", [MODEL_INFER.path, HEALTH_WATCH.path])
def test_metadata_in_many_frames_is_bounded_as_well(grpc_server, path):
    """gRPC looks at the size of each frame alone, and at that of several where they come at once."""
    with closing(Call(grpc_server.grpc_port, path.encode(), {b"x-%d" % n: b"v" * 120 for n in range(2000)})) as large:
        answer = large.answer()
    assert b"metadata is larger than 16384 bytes" in answer or b"grpc-status\x018" in answer  # by gRPC itself


def test_a_client_may_ping_to_keep_its_connection(grpc_server):
    """Clients do where networks forget silent connections. gRPC itself ends it at the third ping in five minutes."""
    with closing(Call(grpc_server.grpc_port, HEALTH_CHECK.path.encode())) as call:
        call.answer()
        for number in range(4):
            time.sleep(1.1 * CLIENTS_PING_SECONDS)
            call.connection.sendall(frame(PING, 0, 0, b"ping %03d" % number))
        received = b""
        while b"ping 003" not in received and (more := call.connection.recv(65536)):
            received += more
    assert b"too_many_pings" not in received
    assert received.endswith(frame(PING, 1, 0, b"ping 003"))


class Sender:
    """A call's context, whose message arrives after a while."""

    def __init__(self, seconds, content=b"message"):
        self.seconds, self.content = seconds, content

    async def read(self):
        await asyncio.sleep(self.seconds)
        return self.content


def in_turns(most, senders, *, most_waiting=100, seconds=5.0, wait=20):
    """What became of each sender, in the order in which that was known."""
    outcomes = []

    async def read(turns, name, sender):
        try:
            outcomes.append((name, await turns.read(sender, seconds)))
        except (TimeoutError, BusyError) as error:
            outcomes.append((name, type(error)))

    async def run():
        turns = Turns(most, most_waiting)
        tasks = []
        for name, sender in senders.items():
            tasks.append(asyncio.ensure_future(read(turns, name, sender)))
            await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(*tasks), 10)
        assert turns._free == most, "all turns were given back"

    before, grpc_limits.WAIT_LOOKS = grpc_limits.WAIT_LOOKS, wait
    try:
        asyncio.run(run())
    finally:
        grpc_limits.WAIT_LOOKS = before
    return outcomes


def test_messages_that_fit_arrive_side_by_side():
    assert in_turns(2, {"a": Sender(0.2), "b": Sender(0.05)}) == [("b", b"message"), ("a", b"message")]


def test_a_slow_one_has_all_its_time_while_none_waits():
    assert in_turns(2, {"slow": Sender(0.5)}) == [("slow", b"message")]
    assert in_turns(2, {"never": Sender(60)}, seconds=0.1) == [("never", TimeoutError)]


def test_a_slow_one_goes_when_another_has_waited():
    assert in_turns(1, {"never": Sender(60), "quick": Sender(0)}) == [("never", BusyError), ("quick", b"message")]
    assert in_turns(1, {"slow": Sender(0.05), "quick": Sender(0)}) == [("slow", b"message"), ("quick", b"message")]


def test_time_in_which_the_process_did_not_run_is_nobodys_fault():
    class Held(Sender):
        async def read(self):
            time.sleep(1)  # all that is due is due at once
            for _ in range(3):
                await asyncio.sleep(0.002)
            return self.content

    outcomes = in_turns(1, {"here": Held(0), "quick": Sender(0)}, wait=50)
    assert outcomes == [("here", b"message"), ("quick", b"message")]


def test_of_too_many_that_wait_the_longest_goes():
    senders = {"first": Sender(0.02), "longest": Sender(0), "b": Sender(0), "c": Sender(0)}
    outcomes = in_turns(1, senders, most_waiting=2)
    assert outcomes[0] == ("longest", BusyError)
    assert dict(outcomes[1:]) == {"first": b"message", "b": b"message", "c": b"message"}


def test_who_waits_for_a_turn_until_the_end_meets_a_busy_server():
    outcomes = dict(in_turns(1, {"slow": Sender(0.4), "late": Sender(0)}, seconds=0.2, wait=1000))
    assert outcomes == {"slow": TimeoutError, "late": BusyError}
    assert in_turns(1, {"slow": Sender(0.1), "late": Sender(0)}, seconds=0.2, wait=1000)[1] == ("late", b"message")


def test_many_stalled_ones_hold_nobody_up_for_long():
    """Each has less time the more wait: 100 would otherwise take ten seconds."""
    senders = {number: Sender(60) for number in range(100)} | {"quick": Sender(0)}
    outcomes = in_turns(2, senders, most_waiting=200)
    assert dict(outcomes) == dict.fromkeys(range(99), BusyError) | {99: TimeoutError, "quick": b"message"}


def test_those_who_leave_while_they_wait_or_arrive_keep_no_turn():
    async def run():
        turns = Turns(1, 100)
        tasks = [asyncio.ensure_future(turns.read(Sender(0.05), 5)) for _ in range(6)]
        await asyncio.sleep(0.01)
        tasks[1].cancel()  # waits
        tasks[0].cancel()  # arrives, and gives its turn to the next that is still there
        tasks[2].cancel()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert [result == b"message" for result in results] == [False] * 3 + [True] * 3
        assert turns._free == 1

    asyncio.run(run())


def test_streams_are_counted_by_connection_and_in_all():
    streams = OpenStreams(3, 2)
    for peer in ("a", "a", "b"):
        streams.add(peer)
    for peer in ("a", "c"):
        with pytest.raises(BusyError):
            streams.add(peer)
    streams.remove("b")
    with pytest.raises(BusyError):
        streams.add("a")
    streams.add("c")
