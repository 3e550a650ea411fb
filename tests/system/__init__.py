"""The real stack: Envoy, Valkey, a MongoDB-wire store, the processor as a process, and OpenAI's own client."""
