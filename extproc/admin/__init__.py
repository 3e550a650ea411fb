"""Provide the operator's use cases, which the CLI calls."""
