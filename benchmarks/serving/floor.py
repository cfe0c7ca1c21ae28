"""A server of uvloop, httptools and ONNX Runtime without checks, limits or time-outs: the least cost of a request.

`python -m benchmarks.serving.floor BUNDLE [--port 8080] [--uds PATH] [--raw]` answers every POST with actions for the
observation in its body. Not to be served with: it believes all it is told. benchmarks/serving/speed.py compares with
it.
"""

import argparse
import asyncio
import sys
from pathlib import Path

import httptools
import numpy as np
import orjson
import uvloop

from trpo_tf.serving.bundle.files import MODEL_FILE
from trpo_tf.serving.bundle.manifest import read_manifest
from trpo_tf.serving.runtime.onnx_runtime import onnxruntime, open_session


class Floor:
    """The policy with its buffers bound once, for a batch of one."""

    def __init__(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        (spec,), action = manifest.observation, manifest.action
        self.observation = np.zeros((1, *spec.shape), spec.dtype)
        self.action = np.zeros((1, *action.shape), action.dtype)
        self.session = open_session((folder / MODEL_FILE).read_bytes())
        self.binding = self.session.io_binding()
        for bind, name, array in (
            (self.binding.bind_input, spec.name, self.observation),
            (self.binding.bind_output, action.name, self.action),
        ):
            bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self.options = onnxruntime.RunOptions()

    def json(self, body: bytes) -> bytes:
        """Answer a JSON request with flat data."""
        self.observation.flat = orjson.loads(body)["inputs"][0]["data"]
        self.session.run_with_iobinding(self.binding, self.options)
        return b'{"outputs":[{"name":"action","data":%b}]}' % orjson.dumps(
            self.action.ravel(), option=orjson.OPT_SERIALIZE_NUMPY
        )

    def raw(self, body: bytes) -> bytes:
        """Answer the bytes of an observation."""
        self.observation.flat = np.frombuffer(body, self.observation.dtype)
        self.session.run_with_iobinding(self.binding, self.options)
        return self.action.tobytes()


class Connection(asyncio.Protocol):
    """One client, whose requests are well-formed or hang."""

    def __init__(self, answer) -> None:
        self.answer, self.body = answer, b""
        self.parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport) -> None:
        """Keep it."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse."""
        self.parser.feed_data(data)

    def on_body(self, part: bytes) -> None:
        """Keep it."""
        self.body += part

    def on_message_complete(self) -> None:
        """Answer."""
        content = self.answer(self.body)
        self.body = b""
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(content), content))


async def serve(answer, port: int, uds: str | None) -> None:
    """Serve until the process is killed."""
    loop = asyncio.get_running_loop()
    if uds:
        await loop.create_unix_server(lambda: Connection(answer), uds)
    else:
        await loop.create_server(lambda: Connection(answer), "127.0.0.1", port)
    print("serving", file=sys.stderr, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--uds")
    parser.add_argument("--raw", action="store_true")
    given = parser.parse_args()
    floor = Floor(given.bundle)
    uvloop.run(serve(floor.raw if given.raw else floor.json, given.port, given.uds))
