"""MongoDB: limits, the ledger and daily usage, in database `modelToken` under the talk's names."""
