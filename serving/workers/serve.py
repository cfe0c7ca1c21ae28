"""Start of the server: open its sockets, then answer in this process, or in several workers that it forks.

Nothing heavy is imported here, since this process forks workers at any time, and replaces those that die. It must have
no thread pools of NumPy and ONNX Runtime: their threads don't survive a fork, and may hold locks. It must have no
sessions either: workers would share their memory and then copy it. A worker imports what it needs.
"""

import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from trpo_tf.serving.listening.credentials import Credentials
from trpo_tf.serving.listening.open_files import occupy_standard_descriptors, raise_file_limit
from trpo_tf.serving.listening.sockets import listeners
from trpo_tf.serving.metrics.shared_counters import SharedCounters
from trpo_tf.serving.options import ServeError, ServeOptions
from trpo_tf.serving.support.logs import configure, emit, flush
from trpo_tf.serving.support.signals import Stopped, guarded, held_back, ignore
from trpo_tf.serving.workers.context import WorkerContext


def serve(path: str | Path, options: ServeOptions | None = None) -> None:
    """Serve a bundle, or a folder of bundles, until SIGTERM or SIGINT; call it in the main thread.

    A line on stderr names the addresses once requests are answered.

    Raises:
        BundleError: no bundle can be loaded: it is missing, damaged or not understood.
        ServeError: an address, a key file or a certificate can't be used, or a worker could not start; this is not
            the main thread, or an event loop runs in it.
    """
    options = options or ServeOptions()
    if options.workers > 1 and "onnxruntime" in sys.modules:
        raise ServeError("--workers forks, which ONNX Runtime does not survive; start it by `trpo-tf serve`")
    # Not imported: a parent of workers has no use for asyncio.
    asyncio: Any = sys.modules.get("asyncio")
    if threading.current_thread() is not threading.main_thread() or (asyncio and asyncio._get_running_loop()):
        raise ServeError(
            "serve handles signals and has its own event loop: call it in the main thread, outside of asyncio and "
            "notebooks, or start `trpo-tf serve` as a process"
        )
    occupy_standard_descriptors()
    configure(options.log_format, options.workers)
    with guarded():
        try:
            with suppress(Stopped):
                _serve(Path(path), options)
            ignore()
            emit("stop", "stopped")
        finally:
            flush()


def _serve(path: Path, options: ServeOptions) -> None:
    options = raise_file_limit(options)
    counters = SharedCounters(options.workers)
    with held_back():
        credentials = Credentials(options)
    with listeners(options) as (sockets, urls, grpc):

        def answer(context: WorkerContext) -> None:
            with held_back():
                from trpo_tf.serving.workers.worker import work

            own = sockets[context.worker_index]
            for listener in {listener for others in sockets for listener in others}.difference(own):
                listener.close()  # so that it closes with the worker that owns it
            work(path, options, credentials, own, urls, grpc, context, counters)

        if options.workers == 1:
            answer(WorkerContext(0))
        else:
            from trpo_tf.serving.workers.supervisor import supervise

            supervise(options, answer, credentials, [listener for own in sockets for listener in own], urls)
