"""Starting the server: what it listens on, and the one process or the several that answer.

Nothing heavy is imported here. With several workers this process forks them, and starts those anew that die, at any
time: it must have neither the threads of NumPy's and ONNX Runtime's pools, which don't survive a fork with the locks
that they hold, nor sessions, whose memory each worker would share and then copy. A worker imports what it needs.
"""

import sys
from contextlib import suppress
from pathlib import Path

from trpo_tf.serving.listening.credentials import Credentials
from trpo_tf.serving.listening.open_files import occupy_standard_descriptors, raise_file_limit
from trpo_tf.serving.listening.sockets import listeners
from trpo_tf.serving.metrics.shared_counters import SharedCounters
from trpo_tf.serving.options import ServeError, ServeOptions
from trpo_tf.serving.support.logs import configure, emit, flush
from trpo_tf.serving.support.signals import Stopped, guarded, held_back, ignore
from trpo_tf.serving.workers.context import WorkerContext


def serve(path: str | Path, options: ServeOptions | None = None) -> None:
    """Serve a bundle, or those of a folder, until SIGTERM or SIGINT; call it in the main thread.

    Once requests are answered, a line on stderr says where.

    Raises:
        BundleError: nothing there can be loaded: it is missing, damaged or not understood.
        ServeError: an address, a key file or a certificate can't be used, or a worker could not start.
    """
    options = options or ServeOptions()
    if options.workers > 1 and "onnxruntime" in sys.modules:
        raise ServeError("--workers forks, which ONNX Runtime does not survive; start it by `trpo-tf serve`")
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
                listener.close()  # so that it closes with the worker whose it is
            work(path, options, credentials, own, urls, grpc, context, counters)

        if options.workers == 1:
            answer(WorkerContext(0))
        else:
            from trpo_tf.serving.workers.supervisor import supervise

            supervise(options, answer, credentials, [listener for own in sockets for listener in own], urls)
