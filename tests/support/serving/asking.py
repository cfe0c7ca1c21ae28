"""Clients that ask for actions again and again while a server changes or ends."""

import http.client
import json
import socket
import threading
from contextlib import contextmanager

from tests.support.serving.waiting import wait_for

BODY = json.dumps({"inputs": [{"name": "obs", "shape": [1, 4], "datatype": "FP32", "data": [0.1, -0.2, 0.05, 0.3]}]})


class UnixConnection(http.client.HTTPConnection):
    """HTTP on a Unix socket."""

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.host)


class Client(threading.Thread):
    """Asks again and again; a request that it sent and that isn't answered with 200 is a failure.

    It keeps its connection as long as the server does. Where it can't connect, it has asked nothing; it ends.
    """

    def __init__(self, make, path: str):
        super().__init__()
        self.make, self.path = make, path
        self.versions: list[str] = []
        self.failures: list[object] = []
        self.is_enough = threading.Event()

    def run(self) -> None:
        connection = self.make()
        while not self.is_enough.is_set():
            if connection.sock is None:
                try:
                    connection.connect()
                except OSError:
                    connection.close()
                    return
            try:
                connection.request("POST", self.path, BODY)
                response = connection.getresponse()
                answer = json.loads(response.read())
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(error)
                connection.close()
                continue
            if response.status == 200:
                self.versions.append(answer["model_version"])
            else:
                self.failures.append(answer)
        connection.close()


@contextmanager
def clients(make, count: int = 4, path: str = "/v2/models/walk/infer"):
    """Clients that ask meanwhile."""
    asking = [Client(make, path) for _ in range(count)]
    for client in asking:
        client.start()
    try:
        wait_for(lambda: all(client.versions or client.failures for client in asking))
        yield asking
    finally:
        for client in asking:
            client.is_enough.set()
        for client in asking:
            client.join(20)


def failures(asking: list[Client]) -> list[object]:
    return [failure for client in asking for failure in client.failures]


def all_at(asking: list[Client], version: str) -> bool:
    return all(client.versions[-1:] == [version] for client in asking)
