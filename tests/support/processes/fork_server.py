"""A process that has imported modules, and forks for each command: `python fork_server.py DESCRIPTOR MODULE ...`.

That descriptor is a Unix socket that listens. A request is JSON, with the child's standard streams and a pipe for its
exit status. The server ends when the last connection is closed. TensorFlow starts its threads with the first operation,
so that a fork is safe before. The package under test is not imported here: each command imports it by itself, with the
environment variables that it was given.
"""

import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import sys
from typing import Any


def next_command(listener: socket.socket) -> dict[str, Any] | None:
    """Fork for each request. Return the request in a child, and None in the server once nobody is connected."""
    statuses: dict[int, int] = {}
    woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    clients = [listener.accept()[0]]
    while clients:
        ready, _, _ = select.select([listener, woken, *clients], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _report(statuses)
        if listener in ready:
            clients.append(listener.accept()[0])
        for client in [each for each in clients if each in ready]:
            message, descriptors, _, _ = socket.recv_fds(client, 1 << 20, 4)
            if not message:
                client.close()
                clients.remove(client)
                continue
            pid = os.fork()
            if pid == 0:
                sockets = [each.detach() for each in (listener, *clients)]
                for descriptor in (*sockets, woken, wakes, descriptors.pop(), *statuses.values()):
                    os.close(descriptor)
                return _in_child(json.loads(message), descriptors)
            *streams, statuses[pid] = descriptors
            for descriptor in streams:
                os.close(descriptor)
            client.send(str(pid).encode())
    return None


def _report(statuses: dict[int, int]) -> None:
    """Write the exit status of each child that ended to its pipe."""
    for pid in list(statuses):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            os.write(statuses[pid], str(os.waitstatus_to_exitcode(status)).encode())
            os.close(statuses.pop(pid))


def _in_child(request: dict[str, Any], streams: list[int]) -> dict[str, Any]:
    """Become the process that was asked for."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for standard, stream in enumerate(streams):
        os.dup2(stream, standard)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in os.environ
    os.chdir(request["folder"])
    resource.setrlimit(resource.RLIMIT_FSIZE, tuple(request["largest_file"]))
    # As with `python -m`: the folder, then PYTHONPATH, then the rest.
    sys.path[:0] = [request["folder"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv[1:] = request["arguments"]
    return request


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C on a terminal; it ends with its clients
    sys.path.pop(0)
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.freeze()  # or each command would copy all of it as it ends, which takes longer than most commands
    request = next_command(socket.socket(fileno=int(sys.argv[1])))
    if request is not None and request["code"] is not None:
        exec(request["code"], {"__name__": "__main__"})
    elif request is not None:
        runpy.run_module("trpo_tf", run_name="__main__", alter_sys=True)
