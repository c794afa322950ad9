"""The worker: it keeps boxes on this host for a coordinator, which drives it over gRPC."""
