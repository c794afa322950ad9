"""The `boxlite-server` command: its parser, the types of its flags, and what operators ask a coordinator."""
