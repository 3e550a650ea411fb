"""Read and rewrite the bodies of each kind of endpoint. `extproc.core.request.body` is the entry point."""
