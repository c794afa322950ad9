"""What monitors read of the worker process: whether it can do its work, and its metrics."""
