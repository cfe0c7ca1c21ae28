"""The same policy as a model of MLServer: `BUNDLE=... mlserver start FOLDER`."""

import os

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Policy(MLModel):
    """The graph in ONNX Runtime."""

    async def load(self) -> bool:
        """Open the session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(f"{os.environ['BUNDLE']}/policy.onnx", options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Return the actions for the one input."""
        (tensor,) = payload.inputs
        (actions,) = self.session.run(["action"], {tensor.name: NumpyCodec.decode_input(tensor)})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("action", actions)])
