"""The worker's gRPC service: its calls, their messages and order, and the streams."""
