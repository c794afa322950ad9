"""The gRPC face of the worker: messages, the order of calls, and streams."""
