"""Serve the admin's use cases over HTTP: a table of operations, and what all of them share."""
