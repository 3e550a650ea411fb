"""Deterministic simulation: several replicas of the real code in one loop, in a time of its own, under faults."""
