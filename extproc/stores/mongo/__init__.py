"""Keep limits, ledger and daily usage in MongoDB, in database `modelToken` with its established names."""
