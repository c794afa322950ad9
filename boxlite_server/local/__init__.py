"""Runs a cluster on this machine, for `make run`, `boxlite-server dev` and the tests: engine, image and processes."""
