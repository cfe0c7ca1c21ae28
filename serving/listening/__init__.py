"""Sockets, certificates and keys: how connections come in."""
