"""WebSockets: a client attached to a command in a box."""
