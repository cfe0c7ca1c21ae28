"""Train policies with trust region policy optimization in TensorFlow."""
