"""Checks of decoded requests, and their runs: bounds, drift, sequences, batching."""
