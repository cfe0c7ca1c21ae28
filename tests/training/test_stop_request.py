"""Signals of a training, among environments that start processes or set handlers of their own."""

import multiprocessing
import os
import signal

import pytest

from trpo_tf.support.graceful_stop import StopRequest


def _wait_for_ever():
    while True:
        signal.pause()


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_an_environment_can_terminate_a_process_that_it_forked():
    """It would wait for its end for ever."""
    with StopRequest() as stop:
        process = multiprocessing.get_context("fork").Process(target=_wait_for_ever)
        process.start()
        while process.exitcode is None:  # Python drops a signal that arrives while it forks
            process.terminate()
            process.join(1)
    assert (process.exitcode, stop.requested) == (-signal.SIGTERM, False)


def test_a_stop_is_heard_though_a_simulator_has_set_a_handler():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        stop.hold()
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested
    assert signal.getsignal(signal.SIGINT) is before


def test_handlers_of_the_program_around_python_are_left_alone(monkeypatch):
    """Python knows them as None, which it can't set again."""
    before, interrupt = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(signal, "getsignal", lambda number: None if number == signal.SIGTERM else interrupt)
        request = StopRequest()
        request.__enter__()
    assert signal.getsignal(signal.SIGTERM) is before
    request.__exit__(None, None, None)
