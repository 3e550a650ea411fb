"""Decide and charge: limits, buckets, costs, reservations, settlements, ledger entries. Pure functions and
values.
"""
