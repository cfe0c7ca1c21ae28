"""Notice that this process was forked from one in which TensorFlow had run: there it waits for ever for its threads."""

import os
import sys

FORKED = (
    "this process was forked from one in which TensorFlow had run, and would wait for ever for threads that a fork "
    "does not copy; start processes by multiprocessing.get_context('spawn'), or before TensorFlow is used"
)
"""Why TensorFlow can't be used where `forked_after_tensorflow`, and what to do."""

_forks: list[int] = []
"""Processes that forked while TensorFlow had threads, from the first one down to this process's parent."""


def forked_after_tensorflow() -> bool:
    """Return whether TensorFlow can't be used here, since it had run before this process was forked."""
    return bool(_forks)


def _note_fork() -> None:
    context_of = getattr(sys.modules.get("tensorflow.python.eager.context"), "context_safe", lambda: None)
    # An import makes a context, and the first operation its threads.
    if getattr(context_of(), "_context_handle", None) is not None:
        _forks.append(os.getppid())


os.register_at_fork(after_in_child=_note_fork)
