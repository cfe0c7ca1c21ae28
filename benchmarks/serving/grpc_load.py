"""Load over gRPC: `python grpc_load.py PORT MODEL CLIENTS SECONDS` prints JSON.

Each client has a thread and a connection of its own, sends the same bytes, waits for the answer, and sends them again.
"""

import json
import sys
import threading
import time

import grpc
import numpy as np

from trpo_tf.serving.codecs.grpc_messages import MODEL_INFER


def request_of(model: str) -> bytes:
    """Make a raw request for one observation."""
    row = np.float32([[0.1, -0.2, 0.05, 0.3]])
    request = MODEL_INFER.request(model_name=model, raw_input_contents=[row.tobytes()])
    request.inputs.add(name="obs", datatype="FP32", shape=row.shape)
    return request.SerializeToString()


def main() -> None:
    """Ask until the time is over."""
    port, model, clients, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    content, together, latencies = request_of(model), threading.Barrier(clients), []

    def ask() -> None:
        own = []
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            call = channel.unary_unary(MODEL_INFER.path)
            call(content, wait_for_ready=True, timeout=10)
            together.wait()
            began = time.perf_counter()
            while (asked := time.perf_counter()) - began < seconds:
                call(content)
                own.append(time.perf_counter() - asked)
        latencies.extend(own)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    latencies.sort()
    p50, p99 = (latencies[int(share * len(latencies))] * 1e6 for share in (0.5, 0.99))
    print(json.dumps({"requests_per_second": len(latencies) / seconds, "p50_us": p50, "p99_us": p99}))


if __name__ == "__main__":
    main()
