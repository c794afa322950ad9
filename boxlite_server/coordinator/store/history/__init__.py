"""The tables of what has happened: the audit and the events."""
