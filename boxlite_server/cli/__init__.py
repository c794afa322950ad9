"""The `boxlite-server` command: its parser, the types of its flags, and the operator's commands."""
