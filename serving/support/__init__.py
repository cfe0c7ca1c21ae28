"""What the server needs of its operating system: signals, logs, limits, addresses, files."""
