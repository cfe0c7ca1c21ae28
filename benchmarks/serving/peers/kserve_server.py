"""The same policy as a model of the KServe SDK: `BUNDLE=... python kserve_server.py --http_port PORT`."""

import os

import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Policy(Model):
    """The graph in ONNX Runtime."""

    def load(self) -> bool:
        """Open the session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(f"{os.environ['BUNDLE']}/policy.onnx", options)
        self.ready = True
        return True

    async def predict(self, payload: InferRequest, *_: object, **__: object) -> InferResponse:
        """Return the actions for the one input."""
        (tensor,) = payload.inputs
        (actions,) = self.session.run(["action"], {tensor.name: tensor.as_numpy()})
        output = InferOutput("action", list(actions.shape), "INT64", actions.ravel().tolist())
        return InferResponse(payload.id or "none", self.name, [output])


if __name__ == "__main__":
    model = Policy("policy")
    model.load()
    ModelServer(workers=1).start([model])
