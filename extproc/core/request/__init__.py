"""Read a request: path, caller and body. Pure functions and values."""
