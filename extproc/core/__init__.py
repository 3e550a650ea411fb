"""The pure core: values in, values out. No I/O, clock, randomness or logging (a contract in CI keeps it so)."""
