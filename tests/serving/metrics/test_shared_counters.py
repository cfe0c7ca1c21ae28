import os
import signal
import time
from multiprocessing import get_context

import pytest

from trpo_tf.serving.metrics.shared_counters import PLACE_BYTES, SharedCounters

fork = get_context("fork")


def write_for_ever(counters: SharedCounters, slot: int) -> None:
    for number in range(10**9):
        counters.write(slot, bytes([number % 251]) * (1000 + number % 50_000))


@pytest.fixture
def writers():
    """Two processes that write two slots of a board as fast as they can."""
    counters = SharedCounters(2)
    processes = [fork.Process(target=write_for_ever, args=(counters, slot)) for slot in range(2)]
    for process in processes:
        process.start()
    while not (counters.read(0) and counters.read(1)):
        time.sleep(0.01)
    yield counters, processes
    for process in processes:
        process.kill()
        process.join()


def test_what_is_read_is_always_one_whole_writing(writers):
    counters, _ = writers
    seen = set()
    for _ in range(2000):
        for slot in range(2):
            content = counters.read(slot)
            assert len(set(content)) == 1
            assert len(content) >= 1000
            seen.add(len(content))
    assert len(seen) > 10


def test_a_writer_killed_at_any_moment_leaves_a_whole_writing():
    counters = SharedCounters(1)
    for _ in range(30):
        process = fork.Process(target=write_for_ever, args=(counters, 0))
        process.start()
        while not counters.read(0):
            time.sleep(0.001)
        time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert len(set(counters.read(0))) == 1


def test_nothing_is_read_before_anything_is_written():
    assert SharedCounters(3).read(2) == b""


def test_what_has_no_room_leaves_the_slot_as_it_was():
    counters = SharedCounters(1)
    assert counters.write(0, b"before")
    assert not counters.write(0, bytes(PLACE_BYTES))
    assert counters.read(0) == b"before"
