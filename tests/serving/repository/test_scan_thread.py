"""A repository whose file system does not answer: the server says so, goes on, and ends when it is told to."""

import shutil
import signal
import time

import pytest

STUCK = """
import os, sys, threading, time
import trpo_tf.serving.repository.scan_thread, trpo_tf.serving.__main__
trpo_tf.serving.repository.scan_thread.SLOW_SECONDS = 0.3
stat, sign = os.stat, sys.argv[1] + "/../stuck"
def waiting(*arguments, **named):
    while threading.current_thread().name == "repository" and os.path.lexists(sign):
        time.sleep(0.02)
    return stat(*arguments, **named)
os.stat = waiting
sys.exit(trpo_tf.serving.__main__.main())
"""
FAULTY = """
import os, sys
import trpo_tf.serving.__main__
import trpo_tf.serving.repository.scan_thread as scans
run = scans.ScanThread.run
async def faulty(self, change):
    if os.path.lexists(sys.argv[1] + "/../stuck"):
        raise RuntimeError("can't start new thread")
    return await run(self, change)
scans.ScanThread.run = faulty
sys.exit(trpo_tf.serving.__main__.main())
"""
BODY = {"inputs": [{"name": "obs", "shape": [1, 4], "datatype": "FP32", "data": [0.1, -0.2, 0.05, 0.3]}]}
LOOKED = "trpo_tf_repository_last_look_timestamp_seconds"


def test_a_scan_that_takes_long_is_logged_and_measured_and_others_are_answered(start, models, scrape):
    with start(models, "--poll", "0.05", code=STUCK) as server:
        before = scrape(server)(LOOKED)
        assert abs(time.time() - before) < 10
        (models.parent / "stuck").touch()
        assert server.process.stderr.readline().startswith("the scan of the repository has taken")
        then = scrape(server)(LOOKED)
        assert server.request("POST", "/v2/models/walk/infer", BODY)[0] == 200
        assert server.request("GET", "/v2/health/ready")[0] == 200
        assert scrape(server)(LOOKED) == then
        (models.parent / "stuck").unlink()
        assert server.process.stderr.readline().startswith("the scan of the repository is over")
        shutil.move(shutil.copytree(models / "walk" / "1", models / ".2"), models / "walk" / "2")
        assert server.process.stderr.readline() == "loaded walk version 2\n"
        assert scrape(server)(LOOKED) > then
        assert server.stop(signal.SIGTERM) == (0, "unloaded walk version 1\n")


def test_a_fault_of_every_scan_is_logged_once(start, models):
    with start(models, "--poll", "0.02", code=FAULTY) as server:
        for _ in range(2):
            (models.parent / "stuck").touch()
            assert server.process.stderr.readline() == "the repository can't be followed; it is scanned again\n"
            while server.process.stderr.readline() != "    RuntimeError: can't start new thread\n":
                pass
            time.sleep(0.1)
            (models.parent / "stuck").unlink()
            time.sleep(0.1)
        assert server.stop(signal.SIGTERM) == (0, "")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_end_does_not_wait_for_a_scan_that_never_ends(start, models, workers):
    with start(models, "--poll", "0.05", "--workers", workers, code=STUCK) as server:
        (models.parent / "stuck").touch()
        assert server.process.stderr.readline().startswith("the scan of the repository has taken")
        asked = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert time.monotonic() - asked < 10  # of which 2 are for the scan


def test_a_server_that_never_looks_does_not_say_when_it_did(start, models, scrape):
    with start(models, "--poll", "0") as server:
        assert scrape(server)(LOOKED) is None
