"""What `trpo-tf` does, a dataclass a command. Each imports what it needs, so that `serve` runs without TensorFlow."""
