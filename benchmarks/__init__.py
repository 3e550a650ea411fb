"""Measure what a request and a streamed chunk cost: `make bench`. See README.md."""
