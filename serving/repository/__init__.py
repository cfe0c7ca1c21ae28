"""Folders of bundles to a catalog of loaded models."""
