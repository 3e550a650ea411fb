"""Waiting: backoff between attempts, periodic steps, and events with a timeout. Knows no other package."""
