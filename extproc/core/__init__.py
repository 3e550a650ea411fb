"""Decide on values and return values: no I/O, clock, randomness or logging (a contract in CI checks the
imports).
"""
