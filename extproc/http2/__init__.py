"""Serve gRPC over HTTP/2 on asyncio, in the thread that does the work. Knows no service."""
