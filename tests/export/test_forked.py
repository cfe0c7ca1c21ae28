"""Processes that are forked after TensorFlow has run, as multiprocessing does by default up to Python 3.13."""

import multiprocessing

import gymnasium as gym
import pytest
import tensorflow as tf

from trpo_tf.config.settings import Config
from trpo_tf.envs.spaces import Spaces
from trpo_tf.errors import UserError
from trpo_tf.export import ExportError, PolicySpec, convert_policy
from trpo_tf.policies.build import build_policy
from trpo_tf.serving import NoiseSpec


def _refusals(answers):
    spaces = Spaces.of(gym.make("CartPole-v1"))
    spec = PolicySpec(spaces.observation, spaces.action, NoiseSpec("gumbel", (2,)))
    for make in (
        lambda: build_policy(Config("CartPole-v1"), spaces),
        lambda: convert_policy(lambda observation, noise: noise, spec),
    ):
        try:
            make()
            answers.send(None)
        except (UserError, ExportError) as error:
            answers.send(str(error))


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_what_would_hang_is_refused():
    tf.ones(1)  # from here on TensorFlow has threads
    theirs, mine = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_refusals, args=(mine,))
    child.start()
    try:
        for _ in range(2):
            assert theirs.poll(60), "it hangs"
            assert "this process was forked from one in which TensorFlow had run" in (theirs.recv() or "")
    finally:
        child.kill()
        child.join()
