"""A cluster on this machine, for `make run`, `boxlite-server dev` and the tests: an engine, an image, the processes."""
