"""Versions of ONNX's standard operators that a graph may have."""

OPSET = 17


OPSETS = range(13, 19)
