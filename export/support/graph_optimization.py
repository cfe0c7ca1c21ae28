"""Run TensorFlow functions without optimising their graphs."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf

_OFF = "disable_meta_optimizer"


@contextlib.contextmanager
def unoptimized() -> Iterator[None]:
    """Run functions as they were traced: for one that is called a few times, optimising takes longer than it saves."""
    before = tf.config.optimizer.get_experimental_options().get(_OFF, False)
    tf.config.optimizer.set_experimental_options({_OFF: True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({_OFF: before})
