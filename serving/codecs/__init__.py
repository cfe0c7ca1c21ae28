"""Wire formats to arrays and back: pure functions."""
