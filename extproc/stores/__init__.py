"""Adapters of the ports: in memory, Redis, MongoDB. One contract suite runs over all of them."""
