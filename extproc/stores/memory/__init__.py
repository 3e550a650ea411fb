"""Keeps everything in memory: the reference that the other stores are tested against."""
