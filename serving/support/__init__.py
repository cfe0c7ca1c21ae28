"""Helpers around the operating system: signals, logs, memory allocation, addresses, files; and the Protobuf format."""
