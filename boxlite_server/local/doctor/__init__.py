"""`boxlite-server doctor`: what is wrong with this host and its way to the coordinator, and what mends it."""
