"""The registry of workers, the choice of a worker, and the calls to workers."""
