"""The same policy as a FastAPI application: `BUNDLE=... uvicorn fastapi_server:app`."""

import os

import numpy as np
import onnxruntime
from fastapi import FastAPI
from pydantic import BaseModel

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(f"{os.environ['BUNDLE']}/policy.onnx", options)
app = FastAPI()


class Tensor(BaseModel):
    """An input tensor."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float]


class Request(BaseModel):
    """An inference request."""

    inputs: list[Tensor]


@app.get("/v2/health/ready")
async def ready() -> dict:
    """Say that the model is ready."""
    return {"ready": True}


@app.post("/v2/models/policy/infer")
async def infer(request: Request) -> dict:
    """Return the actions for the one input."""
    (tensor,) = request.inputs
    observations = np.array(tensor.data, np.float32).reshape(tensor.shape)
    (actions,) = session.run(["action"], {tensor.name: observations})
    output = {"name": "action", "datatype": "INT64", "shape": list(actions.shape), "data": actions.ravel().tolist()}
    return {"model_name": "policy", "outputs": [output]}
