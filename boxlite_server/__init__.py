"""A distributed server for sandbox boxes."""

__version__ = "0.1.0"
