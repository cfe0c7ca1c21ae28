"""Codecs between wire formats and arrays: pure functions."""
