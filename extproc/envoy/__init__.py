"""The edge towards Envoy: protobuf <-> core values, the servicer, health and drain."""
