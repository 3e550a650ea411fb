"""Generated from protos/ by `make protos`; a test compares the two."""
