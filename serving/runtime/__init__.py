"""Acting in process: observations to actions through ONNX Runtime."""
