"""TensorFlow without its start-up chatter, for the command line."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def standard_error_dropped() -> Iterator[None]:
    """Send what is written to file descriptor 2 nowhere: TensorFlow logs there before its log can be set up."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def import_tensorflow() -> None:
    """Import TensorFlow, for the CPU alone, saying nothing but errors."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    with standard_error_dropped():
        import tensorflow  # noqa: F401
