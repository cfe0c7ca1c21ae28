"""What gRPC calls may take up: messages that stop half way, and the turns in which they arrive."""

import asyncio
import threading
import time

import numpy as np
import pytest

grpc = pytest.importorskip("grpc")

from http2 import Unfinished  # noqa: E402

from serving import grpc_limits  # noqa: E402
from serving.grpc_limits import BusyError, Turns, Watchers  # noqa: E402
from serving.grpc_messages import HEALTH_CHECK, MODEL_INFER  # noqa: E402

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


@pytest.mark.parametrize("path", [MODEL_INFER.path, HEALTH_CHECK.path])
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


class Sender:
    """A call's context, whose message arrives after a while."""

    def __init__(self, seconds, content=b"message"):
        self.seconds, self.content = seconds, content

    async def read(self):
        await asyncio.sleep(self.seconds)
        return self.content


def in_turns(most, senders, *, most_waiting=100, seconds=5.0, patience=0.05):
    """What became of each sender, in the order in which that was known."""
    outcomes = []

    async def read(turns, name, sender):
        try:
            outcomes.append((name, await turns.read(sender, seconds)))
        except (TimeoutError, BusyError, asyncio.CancelledError) as error:
            outcomes.append((name, type(error)))

    async def run():
        turns = Turns(most, most_waiting)
        tasks = []
        for name, sender in senders.items():
            tasks.append(asyncio.ensure_future(read(turns, name, sender)))
            await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(*tasks), 10)
        assert turns._free == most, "all turns were given back"

    before, grpc_limits.PATIENCE = grpc_limits.PATIENCE, patience
    try:
        asyncio.run(run())
    finally:
        grpc_limits.PATIENCE = before
    return outcomes


def test_messages_that_fit_arrive_side_by_side():
    assert in_turns(2, {"a": Sender(0.1), "b": Sender(0.05)}) == [("b", b"message"), ("a", b"message")]


def test_a_slow_one_has_all_its_time_while_none_waits():
    assert in_turns(2, {"slow": Sender(0.3)}) == [("slow", b"message")]
    assert in_turns(2, {"never": Sender(60)}, seconds=0.1) == [("never", TimeoutError)]


def test_a_slow_one_goes_when_another_waits_and_the_newest_is_next():
    senders = {"never": Sender(60), "later": Sender(60), "quick": Sender(0)}
    assert in_turns(1, senders, seconds=1)[:2] == [("never", TimeoutError), ("quick", b"message")]


def test_of_too_many_that_wait_the_longest_goes():
    senders = {"first": Sender(0.02), "longest": Sender(0), "b": Sender(0), "c": Sender(0)}
    outcomes = in_turns(1, senders, most_waiting=2)
    assert outcomes[0] == ("longest", BusyError)
    assert dict(outcomes[1:]) == {"first": b"message", "b": b"message", "c": b"message"}


def test_many_stalled_ones_do_not_keep_turns():
    senders = {number: Sender(60) for number in range(20)} | {"quick": Sender(0)}
    outcomes = in_turns(2, senders, seconds=0.5)
    assert ("quick", b"message") in outcomes[:3]
    assert len(outcomes) == 21


def test_watchers_are_counted_by_connection_and_in_all():
    watchers = Watchers(3, 2)
    for peer in ("a", "a", "b"):
        watchers.add(peer)
    for peer in ("a", "c"):
        with pytest.raises(BusyError):
            watchers.add(peer)
    watchers.remove("b")
    with pytest.raises(BusyError):
        watchers.add("a")
    watchers.add("c")
