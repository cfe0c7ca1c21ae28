"""`trpo-tf serve PATH`: serve policies over HTTP."""

import os
import sys
import threading
from collections.abc import Sequence

from trpo_tf.serving.support.signals import Stopped, guarded, held_back, ignore


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and serve. Returns the exit status: 0 after SIGTERM or SIGINT, 2 for a user's error."""
    try:
        with guarded():
            status = _serve(sys.argv[1:] if arguments is None else arguments)
    except Stopped:
        status = 0
    if status == 0:
        ignore()
        _end_with_threads()
    return status


def _serve(arguments: Sequence[str]) -> int:
    with held_back():  # imported in this block, so that a signal meanwhile ends the start without a traceback
        from trpo_tf.serving.command_line import parse_arguments
        from trpo_tf.serving.errors import BundleError, reason_of
        from trpo_tf.serving.support.logs import write_line
        from trpo_tf.serving.workers.serve import serve

    try:
        bundle, options = parse_arguments(arguments, "trpo-tf serve")
        serve(bundle, options)
    except (BundleError, OSError, ImportError, MemoryError) as error:
        if "--debug" in arguments:
            raise
        write_line(f"error: {' '.join(reason_of(error).split())}")
        return 2
    return 0


def _end_with_threads() -> None:
    """End the process now if a thread may hang: Python would wait for it, or shut down while a daemon thread runs."""
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if any(not thread.daemon or thread.name == "repository" for thread in others):
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
