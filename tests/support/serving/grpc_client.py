"""A plain gRPC client: channels, requests, calls, and waiting for what a server does."""

import time
from contextlib import contextmanager, suppress

import grpc
import numpy as np
import pytest

from trpo_tf.serving.codecs.grpc_messages import HEALTH_WATCH, MODEL_INFER

ROW = np.float32([[0.1, -0.2, 0.05, 0.3]])
Code = grpc.StatusCode
BUSY = "too many calls at a time; come again"


@contextmanager
def channel_to(server, credentials=None, **options):
    address = f"127.0.0.1:{server.grpc_port}"
    given = [(f"grpc.{name}", value) for name, value in {"use_local_subchannel_pool": 1, **options}.items()]
    made = grpc.secure_channel(address, credentials, given) if credentials else grpc.insecure_channel(address, given)
    with made as channel:
        yield channel


def request_for(rows, model="discrete", **fields):
    request = MODEL_INFER.request(model_name=model, raw_input_contents=[rows.tobytes()], **fields)
    request.inputs.add(name="obs", datatype="FP32", shape=rows.shape)
    return request


def call(channel, method, message=b"", *, wait=10, **more):
    """The response to a message, or to bytes that need not be one."""
    content = message if isinstance(message, bytes) else message.SerializeToString()
    invoke = channel.unary_unary(method.path, response_deserializer=method.response.FromString)
    return invoke(content, timeout=wait, **more)


def error_of(*arguments, **more):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **more)
    return caught.value.code(), caught.value.details()


def triton_input(rows, name="obs"):
    import tritonclient.grpc

    tensor = tritonclient.grpc.InferInput(name, list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    return tensor


def never(silence):
    silence.wait(30)
    yield from ()


def under_way(value):
    return value("trpo_tf_requests_in_flight") - 1  # which the scrape itself is


def eventually(holds, seconds=10):
    """Waits until it holds, which a call that is refused does not."""
    until = time.monotonic() + seconds
    while True:
        with suppress(grpc.RpcError):
            if holds():
                return
        assert time.monotonic() < until
        time.sleep(0.02)


def watch(channel, service=""):
    invoke = channel.unary_stream(HEALTH_WATCH.path, response_deserializer=HEALTH_WATCH.response.FromString)
    return invoke(HEALTH_WATCH.request(service=service).SerializeToString(), timeout=30)
