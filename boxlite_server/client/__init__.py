"""The `boxlite` command: a client of the REST API, and of nothing else in this package but the errors."""
