"""Decides and charges: limits, buckets, costs, reservations, settlements, ledger entries. Pure."""
