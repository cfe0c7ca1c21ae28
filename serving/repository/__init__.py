"""The model repository: finds bundles in a folder, loads them, and keeps a catalog of loaded models."""
