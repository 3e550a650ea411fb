"""Enforce LLM token quotas and record usage, as an external processor for Envoy."""

__version__ = "0.2.0"
