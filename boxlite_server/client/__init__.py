"""The `boxlite` command: a client of the REST API. It shares only small modules, such as errors, with the servers."""
