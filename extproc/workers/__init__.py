"""Do work that takes long in processes of their own, so that the event loop serves others meanwhile."""
