"""Provide metrics and logs for operators."""
