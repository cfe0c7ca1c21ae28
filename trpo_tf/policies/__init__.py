"""Policies: networks, distributions, and the inference function that is trained, exported and served."""
