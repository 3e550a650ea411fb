"""Tokenweir: an Envoy external processor that enforces LLM token quotas and records usage."""

__version__ = "0.1.0"
