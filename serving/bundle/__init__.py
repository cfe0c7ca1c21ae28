"""The bundle format: manifest, golden cases, signatures, and which ONNX graphs are accepted."""
