"""The same policy as a bare ASGI application: `BUNDLE=... uvicorn asgi_server:app`, or `granian --interface asgi`.

It has no checks and no limits: the floor of what a framework in Python can reach on such a server.
"""

import os
from typing import Any

import numpy as np
import onnxruntime
import orjson

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(f"{os.environ['BUNDLE']}/policy.onnx", options)
HEADERS = [(b"content-type", b"application/json")]


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer a request of any path with actions for its one input."""
    if scope["type"] != "http":
        raise NotImplementedError
    message = await receive()
    body = message["body"]
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    (tensor,) = orjson.loads(body)["inputs"]
    observations = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
    (actions,) = session.run(["action"], {tensor["name"]: observations})
    output = {"name": "action", "datatype": "INT64", "shape": list(actions.shape), "data": actions.ravel().tolist()}
    content = orjson.dumps({"model_name": "policy", "outputs": [output]})
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": content})
