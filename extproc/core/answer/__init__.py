"""Reads an answer as it passes: JSON or a stream, its usage, its size. Pure."""
