"""Real servers, each a process of its own."""

import http.client
import json
import os
import re
import threading
from contextlib import contextmanager
from pathlib import Path

from tests.support.processes import command_line
from tests.support.processes.command_line import Command


class Server:
    """A real server process: `stop()` it with a signal, `request()` from it."""

    def __init__(self, process: Command, port: int, announcement: str, warnings: str):
        self.process, self.port, self.announcement, self.warnings = process, port, announcement, warnings
        over_grpc = re.search(r"grpcs?://[^ ]*:(\d+)", announcement)
        self.grpc_port = int(over_grpc[1]) if over_grpc else None

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def request(self, method: str, path: str, body=None, headers=None):
        """Status and parsed JSON."""
        connection = self.connect()
        try:
            connection.request(method, path, json.dumps(body) if isinstance(body, dict) else body, headers or {})
            response = connection.getresponse()
            return response.status, json.loads(response.read() or "null")
        finally:
            connection.close()

    def follow(self) -> list[str]:
        """What it writes on stderr from now on, as it comes; no `stop` then."""
        lines: list[str] = []

        def read(stream) -> None:
            with stream:
                lines.extend(iter(stream.readline, ""))

        threading.Thread(target=read, args=[os.fdopen(os.dup(self.process.stderr.fileno()))], daemon=True).start()
        return lines

    def stop(self, number: int) -> tuple[int, str]:
        """Exit status, and what it wrote on stderr since it started, but for its farewell."""
        self.process.send_signal(number)
        return self.process.wait(10), self.process.stderr.read().removesuffix("stopped\n")


@contextmanager
def serve(bundle: Path, folder: Path, *arguments: str, code: str | None = None):
    """A server of the bundle, on a free port; run by `code` rather than `trpo-tf serve`, if given."""
    command = ["serve"] if code is None else []
    process = command_line.start(
        folder, *command, bundle, "--port", "0", *arguments, code=code, imported=command_line.SERVING
    )
    try:
        before = []  # what it says of models that it refuses
        while (line := process.stderr.readline()) and "serving " not in line:
            before.append(line)
        port = re.search(r"https?://[^ ]*:(\d+)", line)
        assert port, f"it did not start: {''.join(before)}{line}"
        yield Server(process, int(port[1]), line, "".join(before))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
