"""Policies in process: ONNX Runtime computes actions from observations."""
