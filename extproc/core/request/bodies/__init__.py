"""How the bodies of each kind of endpoint are read, and rewritten. `core.requests` is the door."""
