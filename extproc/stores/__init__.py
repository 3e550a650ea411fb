"""Implement the ports: in memory, on Redis, on MongoDB. One contract suite runs over all of them."""
