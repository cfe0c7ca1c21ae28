"""Asks a server of `discrete` with the KServe SDK's own clients: `kserve_client.py HTTP_PORT GRPC_PORT`, prints JSON.

It is run by an interpreter that has `kserve`, whose pins are not ours.
"""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

ROWS = np.float32([[0.1, -0.2, 0.05, 0.3], [-0.1, 0.2, -0.05, -0.3], [4, -3, 0.4, 3]])


def request(*, raw: bool) -> InferRequest:
    tensor = InferInput("obs", list(ROWS.shape), "FP32")
    tensor.set_data_from_numpy(ROWS, binary_data=raw)
    return InferRequest("discrete", [tensor], request_id="7", parameters={"deterministic": True})


def told(response) -> dict:
    (output,) = response.outputs
    return {"model": response.model_name, "id": response.id, "action": output.as_numpy().tolist()}


async def ask_rest(port: int) -> dict:
    client, url = InferenceRESTClient(RESTConfig(protocol="v2", retries=1)), f"http://127.0.0.1:{port}"
    try:
        answers = {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model ready": await client.is_model_ready(url, "discrete"),
        }
        for raw in (True, False):
            answers[f"raw {raw}"] = told(await client.infer(url, request(raw=raw), model_name="discrete"))
    finally:
        await client.close()
    return answers


async def ask_v1(port: int) -> dict:
    client, url = InferenceRESTClient(RESTConfig(protocol="v1", retries=1)), f"http://127.0.0.1:{port}"
    try:
        answer = await client.infer(url, {"instances": ROWS.tolist()}, model_name="discrete")
        return {"model ready": await client.is_model_ready(url, "discrete"), "predictions": answer["predictions"]}
    finally:
        await client.close()


async def ask_grpc(port: int) -> dict:
    client = InferenceGRPCClient(f"127.0.0.1:{port}")
    answers = {
        "live": await client.is_server_live(),
        "ready": await client.is_server_ready(),
        "model ready": await client.is_model_ready("discrete"),
    }
    for raw in (True, False):
        answers[f"raw {raw}"] = told(await client.infer(request(raw=raw)))
    await client.close()
    return answers


async def main() -> None:
    http_port, grpc_port = map(int, sys.argv[1:])
    answers = {"rest": await ask_rest(http_port), "v1": await ask_v1(http_port), "grpc": await ask_grpc(grpc_port)}
    print(json.dumps({"rows": ROWS.tolist(), **answers}))


if __name__ == "__main__":
    asyncio.run(main())
