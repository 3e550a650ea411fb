"""Reads a request: its path, its caller, its body. Pure."""
