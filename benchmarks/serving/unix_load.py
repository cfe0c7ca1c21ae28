"""Load on a Unix socket, which wrk can't make: `python unix_load.py PATH CONNECTIONS SECONDS < REQUEST` prints JSON.

Each connection sends the request, waits for the answer, and sends it again.
"""

import json
import select
import socket
import sys
import time


def main() -> None:
    """Ask until the time is over."""
    path, connections, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    request = sys.stdin.buffer.read()
    poll, asked = select.epoll(), {}
    clients = {}
    for _ in range(connections):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(path)
        clients[client.fileno()] = client
        poll.register(client.fileno(), select.EPOLLIN)
    started = time.perf_counter()
    for number, client in clients.items():
        asked[number] = time.perf_counter()
        client.send(request)
    latencies = []
    while (now := time.perf_counter()) - started < seconds:
        for number, _ in poll.poll():
            client = clients[number]
            if not client.recv(65536).startswith(b"HTTP/1.1 200"):
                sys.exit("an answer is not 200")
            now = time.perf_counter()
            latencies.append(now - asked[number])
            asked[number] = now
            client.send(request)
    latencies.sort()
    p50, p99 = (latencies[int(share * len(latencies))] * 1e6 for share in (0.5, 0.99))
    print(json.dumps({"requests_per_second": len(latencies) / (now - started), "p50_us": p50, "p99_us": p99}))


if __name__ == "__main__":
    main()
