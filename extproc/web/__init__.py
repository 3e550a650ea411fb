"""Serve HTTP applications. No other package imports uvicorn's server."""
