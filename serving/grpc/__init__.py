"""gRPC: the server, its listener and its limits."""
