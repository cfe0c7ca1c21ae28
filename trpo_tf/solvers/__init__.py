"""Numerical methods that know nothing of policies."""
