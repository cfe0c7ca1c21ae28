import pytest


@pytest.fixture
def channel(grpc_server):
    from tests.support.serving.grpc_client import channel_to

    with channel_to(grpc_server) as made:
        yield made


@pytest.fixture
def triton(grpc_server):
    client = pytest.importorskip("tritonclient.grpc")
    with client.InferenceServerClient(f"127.0.0.1:{grpc_server.grpc_port}") as made:
        yield made
