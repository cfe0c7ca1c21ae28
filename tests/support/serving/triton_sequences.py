"""Sequences by tritonclient's own calls, over HTTP and gRPC."""

from contextlib import contextmanager

import numpy as np
import pytest

from tests.support.paths import BUNDLES

BUNDLE = BUNDLES / "recurrent"
INFER = "/v2/models/recurrent/infer"
SEEN = np.random.default_rng(0).uniform(-2, 2, (40, 2)).astype(np.float32)
HIDDEN = np.zeros((1, 8), np.float32)
TRANSPORTS = pytest.mark.parametrize("transport", ["http", "grpc"])


class Triton:
    """tritonclient over one transport, as its users call it."""

    def __init__(self, server, transport: str, model: str = "recurrent", headers=None):
        self.module = pytest.importorskip(f"tritonclient.{transport}")
        port = server.grpc_port if transport == "grpc" else server.port
        self.client, self.model, self.headers = self.module.InferenceServerClient(f"127.0.0.1:{port}"), model, headers

    def tensor(self, name: str, array: np.ndarray):
        datatypes = {"float32": "FP32", "bool": "BOOL", "float64": "FP64"}
        made = self.module.InferInput(name, list(array.shape), datatypes[str(array.dtype)])
        made.set_data_from_numpy(array)
        return made

    def step(self, observations: np.ndarray, sequence_id, *, start=False, end=False, version="", **more):
        """The answer to one step: `more` are further inputs."""
        inputs = [self.tensor(name, array) for name, array in ({"obs": observations} | more).items()]
        return self.client.infer(
            self.model,
            inputs,
            model_version=version,
            sequence_id=sequence_id,
            sequence_start=start,
            sequence_end=end,
            headers=self.headers,
        )

    def act(self, observation: np.ndarray, sequence_id, **flags) -> np.ndarray:
        return self.step(observation[np.newaxis], sequence_id, **flags).as_numpy("action")[0]

    def refusal(self, observations: np.ndarray, sequence_id, **more) -> str:
        with pytest.raises(self.module.InferenceServerException) as refused:
            self.step(observations, sequence_id, **more)
        return f"{refused.value.status()}: {refused.value.message()}"

    def end(self, *sequence_ids):
        for sequence_id in sequence_ids:
            self.act(SEEN[0], sequence_id, end=True)


@contextmanager
def clients(server, transport, *headers):
    made = [Triton(server, transport, headers=header) for header in headers]
    yield made
    for each in made:
        each.client.close()


def document(sequence_id, observation=SEEN[0], **parameters):
    data = np.ravel(observation).tolist()
    return {
        "inputs": [{"name": "obs", "datatype": "FP32", "shape": [len(data) // 2, 2], "data": data}],
        "parameters": {"sequence_id": sequence_id, **parameters},
    }
